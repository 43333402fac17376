package node

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/leg"
)

// Mode is what a pod's way is for.
type Mode string

const (
	// Active: the guest runs here.
	Active Mode = "Active"
	// Staged: the guest may arrive by live migration.
	Staged Mode = "Staged"
	// Left: the guest runs on another node by now. What still comes for it here is forwarded there.
	Left Mode = "Left"
)

// Grant entitles a pod to the addresses.
type Grant struct {
	Pod       Pod
	Addresses []netip.Addr
	Mode      Mode
	// Provisional: the machine behind the pod could not be read. What the kernel holds for the pod stays, nothing is
	// added.
	Provisional bool
	NAT         floatip.PodNAT
	// From is the node that the guest of a Staged pod shall come from, To the one that the guest of an Active pod is about
	// to move to. "" where nothing moves, or nobody has said yet.
	From, To string
	// Into is the name of the pod on the node To.
	Into string
	// Came is the node that the guest of an Active pod has come from by live migration.
	Came string
	// MACs are those of the guest, as far as they are known.
	MACs []string
	// InUse are those of Addresses that the LAN is not asked about: they come along with a live migration, or their pool
	// says so.
	InUse []netip.Addr
	// Delivery is that of the addresses' pools.
	Delivery floatip.Delivery
	// Running: KubeVirt says that the guest runs.
	Running bool
}

// Refusal says why a pod does not get an address.
type Refusal struct {
	Pod     Pod
	Address netip.Addr // the zero Addr when it concerns the whole pod
	Reason  string
}

// Decision is what shall be on this node.
type Decision struct {
	Grants   []Grant
	Refusals []Refusal
	// Networks are the provider networks of the granted addresses.
	Networks []leg.Network
	// Carries says for each pool whether this node has a NIC on its network, nil, or why not.
	Carries map[string]error
	// Own are the node's own addresses, at most floatip.MaxProviderAddresses, MACs the Ethernet addresses of the NICs of the
	// pools' networks. Both are sorted.
	Own  []netip.Addr
	MACs []string
}

// Decide says which pods of the view get which addresses on the node named self, whose interfaces are nics. Nothing
// that a pod says about itself is believed: an address is granted if its FloatingIP object names the VirtualMachine
// that controls the VirtualMachineInstance that controls the pod, by UID.
//
// inUse are the networks that the node has rules for. A NIC that is gone for a moment, because it is put into a bridge
// or renamed, or because its driver is reset, is no reason to withdraw addresses: their network stays until it is found
// anew.
func Decide(v View, self string, nics []leg.NIC, inUse []leg.Network) Decision {
	d := Decision{Carries: map[string]error{}}
	for name, p := range v.Pools {
		if p.Delivery.OrDefault().OnNode() {
			d.Carries[name] = carries(p, nics)
		}
	}
	d.Own, d.MACs = ownAddresses(v.Pools, nics)
	networks := map[netip.Prefix]leg.Network{}
	taken := map[netip.Addr]Pod{}
	for _, p := range inOrder(v.Pods) {
		d.decidePod(p, v, self, finder{nics, inUse, networks}, taken)
	}
	for _, n := range networks {
		d.Networks = append(d.Networks, n)
	}
	slices.SortFunc(d.Networks, func(a, b leg.Network) int { return strings.Compare(a.Prefix.String(), b.Prefix.String()) })
	return d
}

func carries(p Pool, nics []leg.NIC) error {
	if len(p.Sample) == 0 {
		return fmt.Errorf("pool %s has no addresses", p.Name)
	}
	for _, a := range p.Sample {
		network, err := leg.Find(nics, p.provider(a))
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(nics, func(n leg.NIC) bool { return n.Name == network.Interface && n.Up }) {
			return fmt.Errorf("%w: %s is down", leg.ErrNoNIC, network.Interface)
		}
	}
	return nil
}

// ownAddresses lists what the node itself has: nobody else may get these. It does not wait for a pool on their network,
// which may give as soon as it is made. Where there are too many, those on the pools' NICs come first.
func ownAddresses(pools map[string]Pool, nics []leg.NIC) (own []netip.Addr, macs []string) {
	provider := map[string]bool{}
	for _, p := range pools {
		for _, a := range p.Sample {
			if network, err := leg.Find(nics, p.provider(a)); err == nil {
				provider[network.Interface] = true
			}
		}
	}
	var others []netip.Addr
	for _, nic := range nics {
		if provider[nic.Name] {
			own, macs = append(own, nic.Own...), append(macs, nic.MAC)
		} else {
			others = append(others, nic.Own...)
		}
	}
	slices.SortFunc(own, netip.Addr.Compare)
	slices.SortFunc(others, netip.Addr.Compare)
	own = append(slices.Compact(own), slices.Compact(others)...)
	own = own[:min(len(own), floatip.MaxProviderAddresses)]
	slices.SortFunc(own, netip.Addr.Compare)
	slices.Sort(macs)
	return slices.Compact(own), slices.Compact(macs)
}

func (p Pool) provider(a netip.Addr) leg.Provider {
	return leg.Provider{Address: a, Networks: p.Networks, Gateways: p.Gateways, Interface: p.Interface}
}

// inOrder puts the newest pod first: of two pods of one machine on one node it is the one that can still have a guest.
func inOrder(pods []Pod) []Pod {
	sorted := slices.Clone(pods)
	slices.SortFunc(sorted, func(a, b Pod) int {
		return cmp.Or(cmp.Compare(b.Created, a.Created), cmp.Compare(a.UID, b.UID))
	})
	return sorted
}

func (d *Decision) decidePod(p Pod, v View, self string, f finder, taken map[netip.Addr]Pod) {
	if p.Final {
		return
	}
	refuse := func(a netip.Addr, reason error) { d.Refusals = append(d.Refusals, Refusal{p, a, reason.Error()}) }
	nat, err := floatip.ParsePodNAT([]byte(p.NAT))
	if err != nil {
		refuse(netip.Addr{}, err)
		return
	}
	if err := checkPod(p, nat); err != nil {
		refuse(netip.Addr{}, err)
		return
	}
	machine, known := v.Machines[p.Machine.UID]
	g := Grant{
		Pod: p, Mode: Active, NAT: nat, Provisional: v.Unknown[p.Machine.UID], Delivery: nat.Delivery.OrDefault(),
		Running: machine.Running,
	}
	if !g.Delivery.OnNode() {
		return // somebody else's work
	}
	if !g.Provisional {
		if err := checkMachine(p, machine, known); err != nil {
			refuse(netip.Addr{}, err)
			return
		}
		mode, here := modeOf(p, machine, self)
		if !here {
			return // the guest went on to another node
		}
		g.Mode, g.MACs = mode, machine.MACs
		switch {
		case mode == Staged:
			g.From = machine.Node
		case mode == Active && p.MigrationTarget && machine.Migration.TargetPod == p.Name:
			g.Came = machine.Migration.SourceNode
		case machine.Migration.leaves(self):
			g.To, g.Into = machine.Migration.TargetNode, machine.Migration.TargetPod
		}
	}
	for _, b := range nat.Bindings {
		a := b.Floating
		held, exists := v.Addresses[a]
		if err := checkAddress(a, held, exists, nat.Owner, machine, g.Provisional); err != nil {
			refuse(a, err)
			continue
		}
		if other, ok := taken[a]; ok {
			refuse(a, fmt.Errorf("the newer pod %s of the same machine has %s", other.Name, a))
			continue
		}
		network, err := f.network(a, held, v, g.Delivery)
		if err != nil {
			refuse(a, err)
			continue
		}
		f.found[network.Prefix], taken[a] = network, p
		g.Addresses = append(g.Addresses, a)
		if v.Pools[held.Pool].Unasked || p.MigrationTarget && !held.Unproven {
			g.InUse = append(g.InUse, a)
		}
	}
	if len(g.Addresses) > 0 {
		d.Grants = append(d.Grants, g)
	}
}

// checkPod looks at what the pod says about itself: it must be no contradiction, and it proves nothing.
func checkPod(p Pod, nat floatip.PodNAT) error {
	if !validUID(p.UID) {
		return fmt.Errorf("the pod's UID %q cannot be part of a path", p.UID)
	}
	if nat.Owner.Namespace != p.Namespace {
		return fmt.Errorf("the pod is in namespace %s, its description names the VirtualMachine %s", p.Namespace, nat.Owner)
	}
	if p.Machine.UID == "" {
		return fmt.Errorf("no VirtualMachineInstance controls the pod")
	}
	return nil
}

// validUID keeps what goes into a path of the kubelet's directory and into a link's name free of surprises.
func validUID(uid string) bool {
	return uid != "" && len(uid) <= 64 && !strings.ContainsFunc(uid, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}

// checkMachine looks at the VirtualMachineInstance that the pod's owner reference names. Anyone who may create pods may
// write such a reference, and anyone who may create instances may let one point at a VirtualMachine (KubeVirt 1.8.4 does
// not look at it, vmi-create-admitter.go). So checkAddress wants the VirtualMachine in the pod's own namespace, and the
// pod's description, which nobody but floatip writes, has to name it.
func checkMachine(p Pod, m Machine, known bool) error {
	switch {
	case !known:
		return fmt.Errorf("the VirtualMachineInstance %s (UID %s) that shall control the pod does not exist", p.Machine.Name,
			p.Machine.UID)
	case m.Namespace != p.Namespace || m.Name != p.Machine.Name:
		return fmt.Errorf("UID %s belongs to the VirtualMachineInstance %s/%s, not to %s/%s", m.UID, m.Namespace, m.Name,
			p.Namespace, p.Machine.Name)
	case m.VM == "":
		return fmt.Errorf("no VirtualMachine controls the VirtualMachineInstance %s", m.Name)
	case len(m.Pods) > 0 && !slices.Contains(m.Pods, p.UID):
		return fmt.Errorf("KubeVirt made other pods for the VirtualMachineInstance %s, not this one (status.activePods)",
			m.Name)
	}
	return nil
}

// checkAddress compares the FloatingIP object with the machine and the description.
func checkAddress(a netip.Addr, held Held, exists bool, claimed floatip.Owner, m Machine, provisional bool) error {
	switch {
	case !exists:
		return fmt.Errorf("%s is not allocated: there is no FloatingIP object", a)
	case held.Released:
		return fmt.Errorf("%s was released", a)
	case held.Owner != claimed:
		return fmt.Errorf("%s belongs to the VirtualMachine %s (UID %s), not to %s (UID %s)", a, held.Owner, held.Owner.UID,
			claimed, claimed.UID)
	case !provisional && (held.Owner.UID != m.VM || held.Owner.Namespace != m.Namespace):
		return fmt.Errorf("%s belongs to the VirtualMachine %s (UID %s); the pod's machine is controlled by UID %s", a,
			held.Owner, held.Owner.UID, m.VM)
	}
	return nil
}

// modeOf says whether the guest of m is in p on the node self, or may come. KubeVirt keeps the marks of a migration on
// a pod for its whole life, so what the machine says comes first.
func modeOf(p Pod, m Machine, self string) (Mode, bool) {
	expected := p.MigrationTarget && m.Migration.TargetPod == p.Name
	switch {
	case m.Node == self && m.Migration.leaves(self) && m.Migration.Arrived:
		return Left, true
	case m.Node == self:
		return Active, true
	case expected && m.Migration.Failed:
		return "", false
	case expected && (p.GuestArrived || m.Migration.Arrived):
		return Active, true
	case p.MigrationTarget && (expected || !p.GuestArrived):
		return Staged, true
	case m.Node == "":
		return Active, true
	}
	return "", false
}

// finder finds the provider network of an address.
type finder struct {
	nics  []leg.NIC
	inUse []leg.Network
	found map[netip.Prefix]leg.Network
}

// network returns the provider network of a. The description says for which delivery the pod was made; the pool decides.
func (f finder) network(a netip.Addr, held Held, v View, made floatip.Delivery) (leg.Network, error) {
	pool, ok := v.Pools[held.Pool]
	if !ok {
		return leg.Network{}, fmt.Errorf("the pool %s of %s does not exist or is not for this node", held.Pool, a)
	}
	if pool.Delivery.OrDefault() != made {
		return leg.Network{}, fmt.Errorf("the pool %s of %s has the delivery %s, the pod was made for %s: restart the VM",
			held.Pool, a, pool.Delivery.OrDefault(), made)
	}
	network, err := leg.Find(f.nics, pool.provider(a))
	if err != nil {
		if network = networkOf(f.inUse, a); !network.Prefix.IsValid() {
			return leg.Network{}, fmt.Errorf("pool %s: %w", pool.Name, err)
		}
	}
	for _, o := range f.found {
		switch {
		case o.Prefix == network.Prefix && o.Interface == network.Interface:
			return o, nil // two pools of one network: the gateway of the first counts
		case o.Prefix.Overlaps(network.Prefix):
			return leg.Network{}, fmt.Errorf("pool %s: its network %s on %s overlaps %s on %s, which is in use", pool.Name,
				network.Prefix, network.Interface, o.Prefix, o.Interface)
		}
	}
	return network, nil
}
