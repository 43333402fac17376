// Package lab makes network namespaces and connects them, for tests on the real kernel. A namespace has no name and no
// mount: it goes away with the last descriptor, also when a test is killed, and two runs never meet.
package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RootVariable makes a missing privilege a failure when it is set to "1".
const RootVariable = "FLOATIP_TEST_ROOT"

// NeedRoot skips t, or fails it if RootVariable is set, in a process that may not make network namespaces.
func NeedRoot(t testing.TB) {
	t.Helper()
	err := inNewThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) })
	if err == nil {
		return
	}
	if os.Getenv(RootVariable) == "1" {
		t.Fatalf("this test needs root: make a network namespace: %v", err)
	}
	t.Skipf("needs root: make a network namespace: %v", err)
}

// Namespace is a network namespace.
type Namespace struct {
	name string // in messages only
	file *os.File
}

// New makes a namespace with its loopback up, without duplicate address detection, so that IPv6 addresses work at once,
// and without a limit on the rate of ICMP errors.
func New(t testing.TB, name string) *Namespace {
	t.Helper()
	NeedRoot(t)
	n := &Namespace{name: name}
	err := inNewThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		n.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatalf("namespace %s: %v", name, err)
	}
	t.Cleanup(func() { n.file.Close() })
	n.Sysctl(t, "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0",
		"net.ipv6.conf.all.router_solicitations=0", "net.ipv6.conf.default.router_solicitations=0",
		"net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")
	n.IP(t, "link set lo up")
	return n
}

// At is the namespace of a descriptor, which stays with the caller.
func At(name string, file *os.File) *Namespace { return &Namespace{name: name, file: file} }

// FD is the descriptor of the namespace; it stays with n.
func (n *Namespace) FD() int { return int(n.file.Fd()) }

// Path is a name of the namespace for other processes' setns, valid while this process lives.
func (n *Namespace) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.FD()) }

// Do runs f on a thread in the namespace. Sockets that f makes stay there.
func (n *Namespace) Do(f func() error) error {
	return inNewThread(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace %s: %w", n.name, err)
		}
		return f()
	})
}

// inNewThread runs f on a thread that ends with it, so that no later goroutine inherits the namespace.
func inNewThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the runtime ends the thread
		done <- f()
	}()
	return <-done
}

// Command prepares a program. Only a Start inside Do puts it into the namespace; Start does both.
func (n *Namespace) Start(cmd *exec.Cmd) error { return n.Do(cmd.Start) }

// Run runs a program in the namespace and returns what it printed.
func (n *Namespace) Run(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	out, err := n.Try(stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Try is Run with an error instead of a failed test.
func (n *Namespace) Try(stdin string, args ...string) (string, error) {
	cmd := exec.Command(args[0], args[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := n.Start(cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("%s: %s: %w: %s%s", n.name, strings.Join(args, " "), err, errs.String(), stdin)
	}
	return out.String(), nil
}

// IP runs ip(8) with one command per line; a line that starts with "-6 " is for IPv6.
func (n *Namespace) IP(t testing.TB, commands ...string) {
	t.Helper()
	var v4, v6 []string
	for _, c := range strings.Split(strings.Join(commands, "\n"), "\n") {
		c = strings.TrimSpace(c)
		if rest, ok := strings.CutPrefix(c, "-6 "); ok {
			v6 = append(v6, rest)
		} else if c != "" {
			v4 = append(v4, c)
		}
	}
	n.Run(t, strings.Join(v4, "\n")+"\n", "ip", "-batch", "-")
	if len(v6) > 0 {
		n.Run(t, strings.Join(v6, "\n")+"\n", "ip", "-6", "-batch", "-")
	}
}

// Sysctl sets "key=value" pairs. Dots in the name of an interface are not supported.
func (n *Namespace) Sysctl(t testing.TB, settings ...string) {
	t.Helper()
	err := n.Do(func() (errs error) {
		for _, s := range settings {
			key, value, _ := strings.Cut(s, "=")
			path := "/proc/sys/" + strings.ReplaceAll(key, ".", "/")
			errs = errors.Join(errs, os.WriteFile(path, []byte(value), 0o644))
		}
		return errs
	})
	if err != nil {
		t.Fatalf("sysctl in namespace %s: %v", n.name, err)
	}
}

// NFT runs nft(8) on a script.
func (n *Namespace) NFT(t testing.TB, script string) {
	t.Helper()
	n.Run(t, script, "nft", "-f", "-")
}

// Ruleset returns "nft list ruleset" without the figures of counters, which depend on stray packets.
func (n *Namespace) Ruleset(t testing.TB) string {
	t.Helper()
	return n.Run(t, "", "nft", "--stateless", "list", "ruleset")
}

// Conn returns a connection to nftables in the namespace.
func (n *Namespace) Conn(t testing.TB) *nftables.Conn {
	t.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(n.FD()), nftables.AsLasting())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.CloseLasting() })
	return conn
}

// Settle waits until all links of the namespace are in operation. A link that is up already drops what is sent until the
// kernel's link watch has come round, up to a second later (net/core/link_watch.c).
func (n *Namespace) Settle(t testing.TB) {
	t.Helper()
	Within(t, time.Minute, "the links of namespace "+n.name+" are in operation", func() bool {
		var links []netlink.Link
		err := n.Do(func() (err error) {
			links, err = netlink.LinkList()
			return err
		})
		return err == nil && !slices.ContainsFunc(links, func(l netlink.Link) bool {
			return l.Attrs().Name != "lo" && l.Attrs().OperState != netlink.OperUp
		})
	})
}

// Connect makes a veth pair between two namespaces. Both ends are up.
func Connect(t testing.TB, a *Namespace, nameA string, b *Namespace, nameB string) {
	t.Helper()
	a.IP(t, fmt.Sprintf("link add %s type veth peer name %s netns %s", nameA, nameB, b.Path()),
		fmt.Sprintf("link set %s up", nameA))
	b.IP(t, fmt.Sprintf("link set %s up", nameB))
}
