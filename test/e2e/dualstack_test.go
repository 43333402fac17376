package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/test/rig/guest"
	"floatip.io/floatip/test/rig/lan"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/story"
)

// sixNetworks adds the cluster's IPv6 networks to those of the manifests. The webhook reads them when it starts.
func sixNetworks(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	config := new(corev1.ConfigMap)
	if err := s.Client.Get(ctx, client.ObjectKey{Namespace: "floatip-system", Name: "floatip"}, config); err != nil {
		t.Fatal(err)
	}
	before := config.DeepCopy()
	config.Data["cluster-networks"] += fmt.Sprintf(",%s,%s", lan.Pods6, lan.Green6)
	if err := s.Client.Patch(ctx, config, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

// dual is a VM with an address of each family.
type dual struct {
	*story.Story
	t    *testing.T
	ctx  context.Context
	name string
	// addresses are the floating ones, IPv4 first.
	addresses []netip.Addr
	guest     *guest.Channel
}

// dualStack: a VM has an address of each family. Both are reached from the LAN and from beyond its gateway, the guest is
// seen under them there, and under the pod's addresses in the cluster. Then the guest reboots by itself: nothing is
// plugged anew, nothing is said about its addresses, and they answer again.
func dualStack(t *testing.T, s *story.Story) {
	if err := s.AddPool6(bounded(t)); err != nil {
		t.Fatal(err)
	}
	d := &dual{Story: s, t: t, ctx: bounded(t), name: "dual"}
	d.start()
	d.reached()
	d.seen()
	d.reboots()
}

func (d *dual) start() {
	d.t.Helper()
	vm, err := createVM(d.ctx, d.Story, story.Namespace, d.name, fromPool(story.Pool+","+story.Pool6))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		if err := d.Client.Delete(context.WithoutCancel(d.ctx), vm); err != nil {
			d.t.Error(err)
		}
	})
	for text := range strings.SplitSeq(vm.Annotations["floatip.io/address"], ",") {
		d.addresses = append(d.addresses, netip.MustParseAddr(text))
	}
	if len(d.addresses) != 2 || !d.addresses[0].Is4() || !d.addresses[1].Is6() {
		d.t.Fatalf("the VM holds %v, want one address of each family", d.addresses)
	}
	if err := d.Rig.KubeVirt.Start(d.ctx, story.Namespace, d.name); err != nil {
		d.t.Fatal(err)
	}
	for _, a := range d.addresses {
		if _, err := d.WaitReady(d.ctx, a); err != nil {
			d.t.Fatal(err)
		}
	}
	if d.guest, err = d.Guest(d.ctx, story.Namespace, d.name); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { d.guest.Close() })
}

// reached asks the guest from outside.
func (d *dual) reached() {
	d.t.Helper()
	for _, from := range []lan.Host{d.Rig.LAN.ProviderHost, d.Rig.LAN.OutsideHost} {
		for _, a := range d.addresses {
			banner, _, err := story.WaitBanner(d.ctx, from.Namespace, netip.AddrPortFrom(a, 22))
			if err != nil {
				d.t.Fatal(err)
			}
			if !strings.HasPrefix(banner, "SSH-") {
				d.t.Errorf("%s answers %q to %s, want SSH-…", a, banner, from.Address)
			}
			if _, err := story.Ping(d.ctx, from.Namespace, a, 1); err != nil {
				d.t.Errorf("%s pings %s: %v", from.Address, a, err)
			}
		}
	}
}

// seen has the guest call others, outside and in the cluster.
func (d *dual) seen() {
	d.t.Helper()
	pod, err := d.LauncherPod(d.ctx, story.Namespace, d.name)
	if err != nil {
		d.t.Fatal(err)
	}
	var own []netip.Addr
	for _, ip := range pod.Status.PodIPs {
		own = append(own, netip.MustParseAddr(ip.IP))
	}
	if len(own) != 2 {
		d.t.Fatalf("the pod has the addresses %v, want two", own)
	}
	node := d.Rig.LAN.Nodes[len(d.Rig.LAN.Nodes)-1].Name
	peer, err := d.Rig.LAN.AddPod(node, "six")
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { d.Rig.LAN.DelPod(node, "six") })
	near, far := d.Rig.LAN.ProviderHost, d.Rig.LAN.OutsideHost
	for _, to := range []struct {
		namespace string
		addresses [2]netip.Addr
		as        []netip.Addr
	}{
		{near.Namespace, [2]netip.Addr{near.Address, near.Address6}, d.addresses},
		{far.Namespace, [2]netip.Addr{far.Address, far.Address6}, d.addresses},
		{peer.Namespace, [2]netip.Addr{peer.Address, peer.Address6}, own},
	} {
		for i, a := range to.addresses {
			if have := d.seenBy(to.namespace, a); have != to.as[i] {
				d.t.Errorf("%s sees the guest as %s, want %s", a, have, to.as[i])
			}
		}
	}
}

func (d *dual) seenBy(namespace string, a netip.Addr) netip.Addr {
	d.t.Helper()
	w, err := story.NewWitness(namespace, a)
	if err != nil {
		d.t.Fatal(err)
	}
	defer w.Close()
	seen, err := w.Sees(d.ctx, d.guest)
	if err != nil {
		d.t.Fatal(err)
	}
	return seen
}

// standing is what must not change while a guest reboots: its pod, the link into it, and since when its addresses are
// Ready.
type standing struct {
	pod   types.UID
	links string
	ready [2]metav1.Time
}

func (d *dual) standing() (s standing) {
	d.t.Helper()
	pod, err := d.LauncherPod(d.ctx, story.Namespace, d.name)
	if err != nil {
		d.t.Fatal(err)
	}
	inPod, err := d.Rig.PodNetNS(pod)
	if err != nil {
		d.t.Fatal(err)
	}
	s.pod = pod.UID
	// "fip0@if7": a link that was made anew has another number, here or there.
	if s.links, err = lan.Exec(d.ctx, inPod, "ip", "-oneline", "link", "show", "fip0"); err != nil {
		d.t.Fatal(err)
	}
	for i, a := range d.addresses {
		f, err := d.FloatingIP(d.ctx, a)
		if err != nil {
			d.t.Fatal(err)
		}
		c := meta.FindStatusCondition(f.Status.Conditions, v1alpha1.ConditionReady)
		if c == nil || c.Status != metav1.ConditionTrue {
			d.t.Fatalf("%s is not ready: %+v", a, f.Status)
		}
		s.ready[i] = c.LastTransitionTime
	}
	return s
}

func (d *dual) reboots() {
	d.t.Helper()
	const bootID = "cat /proc/sys/kernel/random/boot_id" // random(4): a new one at each boot
	first, err := d.guest.Run(d.ctx, bootID)
	if err != nil {
		d.t.Fatal(err)
	}
	before := d.standing()
	if _, err := d.guest.Run(d.ctx, "(sleep 0.2; reboot -f) >/dev/null 2>&1 &"); err != nil {
		d.t.Fatal(err)
	}
	if err := process.Wait(d.ctx, nil, "the guest's second boot", func(ctx context.Context) error {
		now, err := d.guest.Run(ctx, bootID)
		if err == nil && now == first {
			err = fmt.Errorf("it is still in boot %s", first)
		}
		return err
	}); err != nil {
		d.t.Fatal(err)
	}
	d.reached()
	if now := d.standing(); now != before {
		d.t.Errorf("the reboot changed %+v to %+v", before, now)
	}
	vm, err := d.VM(d.ctx, story.Namespace, d.name)
	if err != nil {
		d.t.Fatal(err)
	}
	if notes, err := d.Events(d.ctx, vm, "FloatingIPConflict"); err != nil || len(notes) > 0 {
		d.t.Errorf("the reboot was taken for a conflict: %q, %v", notes, err)
	}
}
