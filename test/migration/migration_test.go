package migration

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	kubevirtv1 "kubevirt.io/api/core/v1"

	"floatip.io/floatip/test/rig"
	"floatip.io/floatip/test/rig/lan"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/story"
)

// within bounds each wait, many times of what it takes: a guest boots in some ten seconds on a busy machine, and migrates in
// a few.
const within = 4 * time.Minute

// few is how many migrations a test run makes: there, back, and there again, each in another way (wayOf).
// FLOATIP_MIGRATIONS says another number.
const few = 3

// TestMigrations lets a real guest migrate between two nodes, to and fro, as KubeVirt's controllers have it done, while
// connections of every kind go through its floating addresses, one of each family. One of them is to another guest, which
// migrates at the same time once.
func TestMigrations(t *testing.T) {
	count := few
	if text := os.Getenv("FLOATIP_MIGRATIONS"); text != "" {
		var err error
		if count, err = strconv.Atoi(text); err != nil {
			t.Fatalf("FLOATIP_MIGRATIONS: %v", err)
		}
	}
	s := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*within+time.Duration(count)*within/4)
	defer cancel()
	traffic := begin(ctx, t, s)
	for n := range count {
		migrate(ctx, t, s, traffic, wayOf(n+1, count))
	}
	withoutLabel(ctx, t, s)
}

// start starts a rig of two nodes with floatip, pools of both families and two VMs.
func start(t *testing.T) *story.Story {
	t.Helper()
	if os.Geteuid() != 0 {
		const reason = "the rig makes network namespaces: run as root"
		if os.Getenv("FLOATIP_TEST_ROOT") != "" {
			t.Fatal(reason)
		}
		t.Skip(reason)
	}
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(root)
	progress := func(line string) { t.Log(line) }
	ctx, cancel := context.WithTimeout(t.Context(), 2*within)
	defer cancel()
	r, err := rig.Start(ctx, rig.Options{Progress: progress, Nodes: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			dir, err := story.SaveLogs(r)
			t.Logf("the logs of all components are in %s (%v)", dir, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		if err := r.Stop(ctx); err != nil {
			t.Errorf("remove the rig: %v", err)
		}
	})
	s, err := story.New(r, root, progress)
	if err == nil {
		err = errors.Join(s.Install(ctx), s.AddPool(ctx), s.AddPool6(ctx), s.AddNamespace(ctx, story.Namespace, true))
	}
	if err != nil {
		t.Fatal(err)
	}
	boot(ctx, t, s)
	return s
}

// gatewayFirewall knows connections that it has seen from the start, and lets none of the others in from beyond.
const gatewayFirewall = `add table inet firewall
add chain inet firewall forward { type filter hook forward priority 0; policy accept; }
add rule inet firewall forward iifname "outside" ct state established,related accept
add rule inet firewall forward iifname "outside" tcp dport 7 tcp flags & (syn|ack) == syn accept
add rule inet firewall forward iifname "outside" meta l4proto tcp drop`

// traffic is everything that goes on.
type traffic struct {
	tracks    []*track
	datagrams *datagrams
}

func begin(ctx context.Context, t *testing.T, s *story.Story) traffic {
	t.Helper()
	g, err := s.Guest(ctx, story.Namespace, story.VMName)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := serveEcho(ctx, g); err != nil {
		t.Fatal(err)
	}
	for _, a := range testvm.floating {
		if _, _, err := story.WaitBanner(ctx, s.Rig.LAN.ProviderHost.Namespace, netip.AddrPortFrom(a, 22)); err != nil {
			t.Fatal(err)
		}
	}
	var all traffic
	add := func(one *track, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		all.tracks = append(all.tracks, one)
	}
	outside, provider := s.Rig.LAN.OutsideHost, s.Rig.LAN.ProviderHost
	if _, err := lan.Exec(ctx, s.Rig.LAN.Gateway.Namespace, "nft", gatewayFirewall); err != nil {
		t.Fatal(err)
	}
	add(inbound(ctx, provider.Namespace, story.Floating))
	add(inbound(ctx, outside.Namespace, story.Floating))
	add(inbound(ctx, outside.Namespace, story.Floating6))
	add(betweenGuests(ctx, t, s, g))
	for _, a := range []netip.Addr{outside.Address, outside.Address6} {
		add(outbound(ctx, g, outside.Namespace, a))
		add(download(ctx, g, outside.Namespace, a))
	}
	if all.datagrams, err = startDatagrams(ctx, provider.Namespace, story.Floating); err != nil {
		t.Fatal(err)
	}
	all.tracks = append(all.tracks, &all.datagrams.track)
	all.await(ctx, t, all.marks())
	return all
}

func (a traffic) marks() []int {
	marks := make([]int, len(a.tracks))
	for i, one := range a.tracks {
		marks[i] = one.mark()
	}
	return marks
}

// await waits until all of it has gone on since the marks.
func (a traffic) await(ctx context.Context, t *testing.T, marks []int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	err := process.Wait(ctx, nil, "all connections to go on", func(context.Context) error {
		var errs []error
		for i, one := range a.tracks {
			errs = append(errs, one.proceeds(marks[i], 20))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// migrate moves the guest to the other node in some way, and tells how it was.
func migrate(ctx context.Context, t *testing.T, s *story.Story, all traffic, w way) {
	t.Helper()
	from := testvm.instance(ctx, t, s)
	lost := all.datagrams.lost()
	all.marks()
	begun := time.Now()
	w.ask(ctx, t, s, all, from)
	arrived(ctx, t, s, testvm, from, len(all.tracks))
	marks := make([]int, len(all.tracks))
	var silences string
	for i, one := range all.tracks {
		one.mu.Lock()
		marks[i] = one.moved
		one.mu.Unlock()
	}
	all.await(ctx, t, marks)
	for _, one := range all.tracks {
		silences += fmt.Sprintf("; %s %d ms", one.name, one.silence().Milliseconds())
	}
	fip, err := s.FloatingIP(ctx, story.Floating)
	if err != nil {
		t.Fatal(err)
	}
	move := fip.Status.LastMove
	if move == nil || move.From != from.Status.NodeName || move.To != fip.Status.Node {
		t.Fatalf("the FloatingIP tells of the move %+v, want one from %s to %s", move, from.Status.NodeName, fip.Status.Node)
	}
	stall := "unknown"
	if move.StallMilliseconds != nil {
		stall = fmt.Sprintf("%d ms", *move.StallMilliseconds)
		if said := time.Duration(*move.StallMilliseconds) * time.Millisecond; said > time.Since(begun) {
			t.Errorf("the FloatingIP says that the guest stood still for %s, longer than the whole migration", said)
		}
	}
	if w.check != nil {
		w.check(ctx, t, s, from)
	}
	t.Logf("migration %s, %s to %s in %s: by qemu the guest stood still for %d ms, by floatip for %s (%s, %d connections); "+
		"longest silences%s; UDP packets lost: %d", w.name, move.From, move.To, time.Since(begun).Round(time.Millisecond),
		pause(ctx, t, s, from, move.To).Milliseconds(), stall, move.Trigger, move.Connections, silences, all.datagrams.lost()-lost)
}

// What the logs of the two machines say (test/kubevirt/virthandler/launcher, StillLine and those after it).
var (
	stillLine = regexp.MustCompile(`the guest stands still since (\S+)`)
	runsLine  = regexp.MustCompile(`the guest runs since (\S+)`)
	// postCopyLine comes on the old node, when what memory is still there follows the guest.
	postCopyLine = regexp.MustCompile(`memory follows the guest since (\S+)`)
)

// pause returns how long the guest itself stood still: from qemu's STOP on its old node to RESUME on its new one.
func pause(ctx context.Context, t *testing.T, s *story.Story, from *kubevirtv1.VirtualMachineInstance, to string) time.Duration {
	t.Helper()
	left := s.Rig.EndedLog(from.Status.NodeName, from.Name, string(from.UID))
	var still, runs time.Time
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	err := process.Wait(ctx, nil, "the logs of the two machines", func(context.Context) (err error) {
		if still, err = told(left, stillLine); err == nil {
			runs, err = told(s.Rig.MachineLog(to, string(from.UID)), runsLine)
		}
		return err
	})
	if err == nil {
		err = os.Remove(left) // the next one is that of the next migration
	}
	if err != nil {
		t.Fatal(err)
	}
	return runs.Sub(still)
}

// told returns the time in the line of a log.
func told(path string, line *regexp.Regexp) (time.Time, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return time.Time{}, err
	}
	found := line.FindSubmatch(raw)
	if found == nil {
		return time.Time{}, fmt.Errorf("%s does not say: %s", path, line)
	}
	return time.Parse(time.RFC3339Nano, string(found[1]))
}
