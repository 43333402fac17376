package story

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	kubevirtv1 "kubevirt.io/api/core/v1"

	"floatip.io/floatip"
	"floatip.io/floatip/test/rig/guest"
	"floatip.io/floatip/test/rig/lan"
)

// Namespaces that Tell makes, and the VM of test/testdata/vm.yaml.
const (
	Namespace      = "demo"
	OtherNamespace = "not-opted-in"
	VMName         = "testvm"
)

// Floating is the first address of the pool, which a fresh ledger gives to the first VM.
var Floating = netip.MustParseAddr("192.168.100.50")

// FirstAnswerWithin is how soon after the FloatingIP is Ready the guest answers through it, at the latest: milliseconds where
// its machine has nothing else to do. An emulated guest shares two cores with a whole cluster.
const FirstAnswerWithin = 15 * time.Second

const sshPort = 22

// stepWithin bounds a step. The longest, the guest's boot, takes some ten seconds on a busy machine of two cores.
const stepWithin = 5 * time.Minute

// Teller is told what happens: the demo prints it, a test logs it.
type Teller interface {
	// Step runs one step. Its error names the step.
	Step(ctx context.Context, title string, run func(context.Context) error) error
	// Show takes something that was seen.
	Show(text string)
}

// chapters is the story on its way: what one step leaves for the next ones.
type chapters struct {
	*Story
	Teller
	manifest string
	vm       *kubevirtv1.VirtualMachine
	guest    *guest.Channel
}

// Tell tells the whole story on a rig that is fresh, and ends with the first step that does not hold.
func Tell(ctx context.Context, t Teller, s *Story) error {
	manifest, err := s.Manifest()
	if err != nil {
		return err
	}
	c := &chapters{Teller: t, Story: s, manifest: manifest}
	for _, step := range []struct {
		title string
		run   func(context.Context) error
	}{
		{"kubectl apply -k manifests; wait for webhook and agents", c.install},
		{"a pool, 192.168.100.50 to 192.168.100.99, and a namespace that opts in", c.prepare},
		{"kubectl apply -f vm.yaml, unchanged: the webhook allocates", c.createVM},
		{"start the VM through KubeVirt's API, as virtctl does", c.start},
		{"the NAT table in the virt-launcher pod", c.table},
		{"from the provider LAN and from beyond its gateway: ping and banner of the guest", c.inbound},
		{"from the guest: who sees which address", c.outbound},
		{"the CNI stand-in drops foreign addresses both ways; the leg does not need it", c.spoof},
		{"a second VM that requests the same address is refused", c.conflict},
		{"a VM in a namespace without the label is untouched", c.untouched},
	} {
		within, cancel := context.WithTimeoutCause(ctx, stepWithin, fmt.Errorf("the step did not end within %s", stepWithin))
		err := t.Step(within, step.title, step.run)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *chapters) showf(format string, args ...any) { c.Show(fmt.Sprintf(format, args...)) }

func (c *chapters) install(ctx context.Context) error {
	if err := c.Install(ctx); err != nil {
		return err
	}
	out, err := c.Kubectl(ctx, "", "-n", "floatip-system", "get", "pods", "-o", "wide", "--no-headers")
	c.Show(out)
	return err
}

func (c *chapters) prepare(ctx context.Context) error {
	if err := c.AddPool(ctx); err != nil {
		return err
	}
	out, err := c.Kubectl(ctx, "", "get", "floatingippools")
	if err != nil {
		return err
	}
	c.Show(out)
	return errors.Join(c.AddNamespace(ctx, Namespace, true), c.AddNamespace(ctx, OtherNamespace, false))
}

func (c *chapters) createVM(ctx context.Context) error {
	out, err := c.Kubectl(ctx, c.manifest, "-n", Namespace, "apply", "-f", "-")
	if err != nil {
		return err
	}
	c.Show(out)
	if c.vm, err = c.VM(ctx, Namespace, VMName); err != nil {
		return err
	}
	if have := c.vm.Annotations[floatip.AnnotationAddress]; have != Floating.String() {
		return fmt.Errorf("annotation %s of the VM is %q, want %s", floatip.AnnotationAddress, have, Floating)
	}
	if _, err := c.WaitBound(ctx, Floating, c.vm); err != nil {
		return err
	}
	c.showf("annotation  %s: %s", floatip.AnnotationAddress, Floating)
	messages, err := c.WaitEvent(ctx, c.vm, "FloatingIPAllocated")
	if err != nil {
		return err
	}
	c.showf("event       FloatingIPAllocated: %s", strings.Join(messages, "; "))
	out, err = c.Kubectl(ctx, "", "get", "floatingips")
	c.Show(out)
	return err
}

func (c *chapters) start(ctx context.Context) error {
	if err := c.Rig.KubeVirt.Start(ctx, Namespace, VMName); err != nil {
		return err
	}
	if _, err := c.WaitReady(ctx, Floating); err != nil {
		return err
	}
	banner, took, err := WaitBanner(ctx, c.Rig.LAN.ProviderHost.Namespace, netip.AddrPortFrom(Floating, sshPort))
	if err != nil {
		return err
	}
	c.showf("Ready; the guest's first answer on the provider LAN came %s later: %s", took.Round(time.Millisecond), banner)
	if took > FirstAnswerWithin {
		return fmt.Errorf("the first answer came %s after Ready, want at most %s", took, FirstAnswerWithin)
	}
	out, err := c.Kubectl(ctx, "", "get", "floatingips")
	if err != nil {
		return err
	}
	c.Show(out)
	c.guest, err = c.Guest(ctx, Namespace, VMName)
	return err
}

func (c *chapters) table(ctx context.Context) error {
	pod, err := c.LauncherPod(ctx, Namespace, VMName)
	if err != nil {
		return err
	}
	inPod, err := c.Rig.PodNetNS(pod)
	if err != nil {
		return err
	}
	table, err := lan.Exec(ctx, inPod, "nft", "list", "table", "ip", "nat")
	if err != nil {
		return err
	}
	c.showf("pod %s on %s:\n%s", pod.Name, pod.Spec.NodeName, table)
	for _, want := range []string{"chain KUBEVIRT_PREINBOUND", "chain floatip_prerouting", "chain floatip_guard", Floating.String()} {
		if !strings.Contains(table, want) {
			return fmt.Errorf("the table has no %q", want)
		}
	}
	return nil
}

func (c *chapters) inbound(ctx context.Context) error {
	for _, from := range []struct{ name, namespace string }{
		{"provider host 192.168.100.200", c.Rig.LAN.ProviderHost.Namespace},
		{"host beyond the gateway 203.0.113.10", c.Rig.LAN.OutsideHost.Namespace},
	} {
		times, err := Ping(ctx, from.namespace, Floating, 3)
		if err != nil {
			return fmt.Errorf("%s pings %s: %w", from.name, Floating, err)
		}
		banner, err := Banner(ctx, from.namespace, netip.AddrPortFrom(Floating, sshPort))
		if err != nil {
			return fmt.Errorf("%s connects to %s: %w", from.name, Floating, err)
		}
		if !strings.HasPrefix(banner, "SSH-") {
			return fmt.Errorf("%s got %q from %s port %d, want SSH-…", from.name, banner, Floating, sshPort)
		}
		c.showf("%-38s → %s  %s  %s", from.name, Floating, times, banner)
	}
	return nil
}

func (c *chapters) outbound(ctx context.Context) error {
	pod, err := c.LauncherPod(ctx, Namespace, VMName)
	if err != nil {
		return err
	}
	podAddress, err := netip.ParseAddr(pod.Status.PodIP)
	if err != nil {
		return err
	}
	peer, err := c.Rig.LAN.AddPod(c.Rig.LAN.Nodes[len(c.Rig.LAN.Nodes)-1].Name, "peer")
	if err != nil {
		return err
	}
	for _, flow := range []struct {
		to        string
		namespace string
		address   netip.Addr
		seenAs    netip.Addr
	}{
		{"provider host", c.Rig.LAN.ProviderHost.Namespace, c.Rig.LAN.ProviderHost.Address, Floating},
		{"host beyond the gateway", c.Rig.LAN.OutsideHost.Namespace, c.Rig.LAN.OutsideHost.Address, Floating},
		{"peer pod", peer.Namespace, peer.Address, podAddress},
	} {
		seen, err := c.seenBy(ctx, flow.namespace, flow.address)
		if err != nil {
			return err
		}
		c.showf("guest → %-24s %-15s sees %s", flow.to, flow.address, seen)
		if seen != flow.seenAs {
			return fmt.Errorf("%s sees the guest as %s, want %s", flow.to, seen, flow.seenAs)
		}
	}
	return c.ownAddress(ctx)
}

// seenBy lets the guest connect to a witness and returns who it was for the witness.
func (c *chapters) seenBy(ctx context.Context, namespace string, address netip.Addr) (netip.Addr, error) {
	witness, err := NewWitness(namespace, address)
	if err != nil {
		return netip.Addr{}, err
	}
	defer witness.Close()
	return witness.Sees(ctx, c.guest)
}

// ownAddress shows that the guest reaches itself by its floating address (hairpin).
func (c *chapters) ownAddress(ctx context.Context) error {
	out, err := c.guest.Run(ctx, fmt.Sprintf("echo | nc -w 5 %s %d | head -n 1", Floating, sshPort))
	if err != nil {
		return fmt.Errorf("guest connects to its own floating address: %w", err)
	}
	if !strings.HasPrefix(out, "SSH-") {
		return fmt.Errorf("the guest got %q from its own floating address, want SSH-…", out)
	}
	c.showf("guest → its own floating address  %-9s answers %s", Floating, strings.TrimSpace(out))
	return nil
}

func (c *chapters) spoof(ctx context.Context) error {
	pod, err := c.LauncherPod(ctx, Namespace, VMName)
	if err != nil {
		return err
	}
	drops, err := c.CNIDropsForeignAddresses(ctx, pod, Floating)
	if err != nil {
		return err
	}
	c.showf("through the pod's CNI interface, %s as source: dropped (%d packets); as destination: dropped (%d packets)",
		Floating, drops.FromPod, drops.ToPod)
	_, err = Ping(ctx, c.Rig.LAN.ProviderHost.Namespace, Floating, 1)
	if err == nil {
		c.Show("through the leg: still answered")
	}
	return err
}

func (c *chapters) conflict(ctx context.Context) error {
	_, err := c.Kubectl(ctx, WithRequest(c.manifest, "rival", Floating), "-n", Namespace, "create", "-f", "-")
	if err == nil {
		return fmt.Errorf("a second VM got %s", Floating)
	}
	c.Show(err.Error())
	if holder := Namespace + "/" + VMName; !strings.Contains(err.Error(), holder) {
		return fmt.Errorf("the refusal does not name the holder %s", holder)
	}
	return nil
}

func (c *chapters) untouched(ctx context.Context) error {
	if _, err := c.Kubectl(ctx, c.manifest, "-n", OtherNamespace, "create", "-f", "-"); err != nil {
		return err
	}
	vm, err := c.VM(ctx, OtherNamespace, VMName)
	if err != nil {
		return err
	}
	if err := Untouched(vm); err != nil {
		return err
	}
	c.showf("%s/%s was created without a word of floatip in it", OtherNamespace, VMName)
	return nil
}
