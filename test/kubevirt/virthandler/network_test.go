package virthandler_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	v1 "kubevirt.io/api/core/v1"

	"floatip.io/floatip/test/kubevirt/virthandler"
	"floatip.io/floatip/test/kubevirt/virthandler/launcher"
	"kubevirt.io/kubevirt/pkg/virt-launcher/virtwrap/api"
)

// TestMain is the launcher too: Start calls its own program.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == launcher.Subcommand {
		if err := launcher.Run(context.Background(), launcher.Dir(os.Args[2])); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// needRoot skips without the privilege to make namespaces; `make test` turns that into a failure.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	const reason = "needs root: network namespaces, nft, qemu on a tap device"
	if os.Getenv("FLOATIP_TEST_ROOT") == "1" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// pod is a namespace with an eth0, as a CNI leaves it, and the namespace of its node.
type pod struct {
	pod, node virthandler.Namespace
}

// newPod makes a pod whose link, usually eth0, has the given addresses. Both namespaces go away with the test.
func newPod(t *testing.T, link string, addresses ...string) pod {
	t.Helper()
	name := fmt.Sprintf("vh%d-%d", os.Getpid(), pods.Add(1))
	for _, side := range []string{"pod", "node"} {
		run(t, "ip", "netns", "add", name+side)
		t.Cleanup(func() { run(t, "ip", "netns", "del", name+side) })
		run(t, "ip", "-n", name+side, "link", "set", "lo", "up")
	}
	run(t, "ip", "-n", name+"node", "link", "add", "veth0", "type", "veth", "peer", "name", link, "netns", name+"pod")
	run(t, "ip", "-n", name+"node", "link", "set", "veth0", "up")
	run(t, "ip", "-n", name+"pod", "link", "set", link, "up")
	for _, address := range addresses {
		prefix := netip.MustParsePrefix(address)
		gateway := netip.PrefixFrom(prefix.Masked().Addr().Next(), prefix.Bits())
		run(t, "ip", addAddress(name+"node", gateway.String(), "veth0")...)
		run(t, "ip", addAddress(name+"pod", address, link)...)
		run(t, "ip", "-n", name+"pod", "route", "add", "default", "via", gateway.Addr().String())
	}
	const folder = "/run/netns/"
	return pod{virthandler.Namespace(folder + name + "pod"), virthandler.Namespace(folder + name + "node")}
}

// addAddress skips duplicate address detection: an IPv6 address would wait a second for it.
func addAddress(namespace, address, link string) []string {
	args := []string{"-n", namespace, "addr", "add", address, "dev", link}
	if strings.Contains(address, ":") {
		args = append(args, "nodad")
	}
	return args
}

// pods counts the pods of this process, for their names.
var pods atomic.Int64

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	output, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, output)
	}
	return string(output)
}

// tools builds KubeVirt's virt-chroot and puts it on PATH.
func tools(t *testing.T) {
	t.Helper()
	folder := t.TempDir()
	run(t, "go", "build", "-o", folder, "kubevirt.io/kubevirt/cmd/virt-chroot")
	t.Setenv("PATH", folder+":"+os.Getenv("PATH"))
}

// mainModule is floatip's own, seen from this package.
const mainModule = "../../.."

// guestImage makes the rig's guest, which the main module knows how to.
func guestImage(t *testing.T) (kernel, initrd string) {
	t.Helper()
	cmd := exec.Command("go", "run", "./test/rig/cmd/guest-image")
	cmd.Dir, cmd.Stderr = mainModule, os.Stderr
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("guest image: %v", err)
	}
	paths := strings.Fields(string(output))
	return paths[0], paths[1]
}

func instance(name string) *v1.VirtualMachineInstance {
	return &v1.VirtualMachineInstance{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: "8a1b7f5e-0001-4a53-9b6d-3b1b0e8f2f10"},
		Spec: v1.VirtualMachineInstanceSpec{
			Domain: v1.DomainSpec{
				Resources: v1.ResourceRequirements{Requests: corev1.ResourceList{"memory": resource.MustParse("64M")}},
				Chassis:   &v1.Chassis{Asset: "floatip=192.168.100.50,2001:db8::50"},
				Devices: v1.Devices{Interfaces: []v1.Interface{{
					Name:                   "default",
					InterfaceBindingMethod: v1.InterfaceBindingMethod{Masquerade: &v1.InterfaceMasquerade{}},
				}}},
			},
			Networks: []v1.Network{{Name: "default", NetworkSource: v1.NetworkSource{Pod: &v1.PodNetwork{}}}},
		},
		Status: v1.VirtualMachineInstanceStatus{MigrationTransport: v1.MigrationTransportUnix},
	}
}

// A real guest behind KubeVirt's set-up: it gets its address from KubeVirt's DHCP server, answers on the pod's address,
// and ends when its power button is pressed.
func TestGuestBehindMasquerade(t *testing.T) {
	needRoot(t)
	tools(t)
	kernel, initrd := guestImage(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	p := newPod(t, "eth0", "100.0.1.2/24", "fd00:100::2/64")
	vmi := instance("testvm")
	runDir := shortDir(t)
	network := virthandler.NewNetwork(runDir)
	if err := network.Setup(vmi, vmi.Spec.Networks, p.pod); err != nil {
		t.Fatal(err)
	}
	dir := launcher.Dir(filepath.Join(runDir, string(vmi.UID)))
	spec := launcher.Spec{VMI: vmi, Kernel: kernel, Initrd: initrd, Nameserver: "10.96.0.10",
		Search: []string{"default.svc.cluster.local"}}
	if err := launcher.Start(dir, spec, p.pod); err != nil {
		t.Fatal(err)
	}
	client := launcher.Connect(dir)
	t.Cleanup(func() { end(t, client, dir) })
	snapshot := waitFor(t, ctx, client, api.Running)
	nic := snapshot.Domain.Spec.Devices.Interfaces[0]
	if nic.Alias.GetName() != "default" || nic.Target.Device != "tap0" {
		t.Errorf("interface of the domain is %q on %q, want default on tap0", nic.Alias.GetName(), nic.Target.Device)
	}
	for _, address := range []string{"100.0.1.2", "fd00:100::2"} {
		if banner := banner(t, ctx, p.node, net.JoinHostPort(address, "22")); !strings.HasPrefix(banner, "SSH-2.0-dropbear") {
			t.Errorf("banner on %s is %q, want SSH-2.0-dropbear…", address, banner)
		}
	}
	if err := client.Shutdown(ctx, 30); err != nil {
		t.Fatal(err)
	}
	last := waitFor(t, ctx, client, api.Shutoff)
	if last.Domain.Status.Reason != api.ReasonShutdown {
		t.Errorf("the guest ended with reason %s, want %s", last.Domain.Status.Reason, api.ReasonShutdown)
	}
}

// shortDir is a temporary folder with a path that leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vh")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// end stops a launcher and waits until it has gone; after a failure it shows its logs.
func end(t *testing.T, client *launcher.Client, dir launcher.Dir) {
	t.Helper()
	ctx := context.Background()
	if t.Failed() {
		for _, path := range []string{dir.Log(), dir.Console()} {
			content, _ := os.ReadFile(path)
			t.Logf("%s:\n%s", filepath.Base(path), content)
		}
	}
	if err := client.Exit(ctx); err != nil {
		t.Error(err)
	}
	for snapshot, err := client.Domain(ctx, 0); err == nil; {
		snapshot, err = client.Domain(ctx, snapshot.Revision)
	}
}

func waitFor(t *testing.T, ctx context.Context, client *launcher.Client, want api.LifeCycle) launcher.Snapshot {
	t.Helper()
	var now launcher.Snapshot
	for now.Domain == nil || now.Domain.Status.Status != want {
		next, err := client.Domain(ctx, now.Revision)
		if err != nil {
			t.Fatalf("wait for %s: %v", want, err)
		}
		if next.Domain.Status.Status == api.Crashed {
			t.Fatalf("wait for %s: the machine crashed", want)
		}
		now = next
	}
	return now
}

// banner reads the first line that a TCP server sends, seen from a namespace. It tries until ctx is done.
func banner(t *testing.T, ctx context.Context, from virthandler.Namespace, address string) string {
	t.Helper()
	for {
		var line string
		err := from.Do(func() error {
			conn, err := net.DialTimeout("tcp", address, time.Second)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				return err
			}
			line, err = bufio.NewReader(conn).ReadString('\n')
			return err
		})
		if err == nil {
			return line
		}
		select {
		case <-ctx.Done():
			t.Fatalf("banner of %s: %v", address, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
