package leg

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Network is a provider network as this node carries it.
type Network struct {
	// Prefix is the network itself, for instance 192.168.100.0/24.
	Prefix netip.Prefix
	// Gateway is its router. The zero Addr stands for a network without one.
	Gateway netip.Addr
	// Interface is the name of the node's NIC on the network.
	Interface string
	// Bare: Interface has no IPv4 address of its own in Prefix, so that the kernel asks the agent for the Ethernet
	// addresses of its hosts before it asks them itself.
	Bare bool
	// MTU of Interface in bytes; the legs take it over. 0 leaves the kernel's default.
	MTU int
	// Mark is the packet mark of what goes to and from the network by the links of the CNI (see Hop). 0 for a network
	// that has no hops. AssignMarks sets it.
	Mark uint32
}

// Leg is the private link to one pod.
type Leg struct {
	// Pod is the UID of the pod.
	Pod string
	// Addresses are the floating addresses that lie behind the leg, at most one per family.
	Addresses []netip.Addr
	// Staged legs carry what arrives from the provider network for them, while the node does not answer for them yet.
	Staged bool
	// Silent are those of Addresses that the kernel does not answer for: the pod is not ready.
	Silent []netip.Addr
	// Idle are those of Addresses that nothing is delivered to and nothing is let out from: somebody else may have them.
	Idle []netip.Addr
	// Left legs carry nothing any more: their guests are on another node, and what comes for them takes the node's
	// ordinary routes to the provider network.
	Left bool
}

// Config is all that the node shall hold. The zero Config stands for nothing at all.
type Config struct {
	// Networks must contain every address of Legs. Those that contain none leave no trace in the kernel.
	Networks []Network
	// ClusterNetworks are those of pods, services and nodes: answers to them take the node's ordinary routes.
	ClusterNetworks []netip.Prefix
	Legs            []Leg
	Hops            []Hop
	// Left are addresses whose guests are on another node now. What still comes for them here is sent on there.
	Left []netip.Addr
}

// Validate reports what Apply could not work with: an address without network, an address of two pods, two networks that
// overlap, a pod with two legs, a hop whose network has no mark.
func (c Config) Validate() error {
	var errs []error
	for i, n := range c.Networks {
		if !n.Prefix.IsValid() || n.Prefix != n.Prefix.Masked() || n.Interface == "" {
			errs = append(errs, fmt.Errorf("provider network %q on interface %q: not a network and a NIC", n.Prefix,
				n.Interface))
		}
		for _, o := range c.Networks[:i] {
			if o.Prefix.Overlaps(n.Prefix) {
				errs = append(errs, fmt.Errorf("provider networks %s on %s and %s on %s overlap: packets could go either way",
					o.Prefix, o.Interface, n.Prefix, n.Interface))
			}
		}
	}
	holders, pods := map[netip.Addr]string{}, map[string]bool{}
	for _, l := range c.Legs {
		if pods[l.Pod] {
			errs = append(errs, fmt.Errorf("pod %s has two legs", l.Pod))
		}
		pods[l.Pod] = true
		for _, a := range l.Addresses {
			if other, taken := holders[a]; taken {
				errs = append(errs, fmt.Errorf("address %s lies behind the legs of pods %s and %s", a, other, l.Pod))
			}
			holders[a] = l.Pod
			if _, ok := c.NetworkOf(a); !ok {
				errs = append(errs, fmt.Errorf("address %s is in no provider network of this node", a))
			}
		}
	}
	for _, h := range c.Hops {
		if other, taken := holders[h.Address]; taken {
			errs = append(errs, fmt.Errorf("address %s lies behind pods %s and %s", h.Address, other, h.Pod))
		}
		holders[h.Address] = h.Pod.String()
		switch n, ok := c.NetworkOf(h.Address); {
		case !ok:
			errs = append(errs, fmt.Errorf("address %s is in no provider network of this node", h.Address))
		case n.Mark == 0:
			errs = append(errs, fmt.Errorf("network %s has no packet mark for %s", n.Prefix, h.Address))
		case h.Address.Is4() != h.Pod.Is4() || h.Link == "":
			errs = append(errs, fmt.Errorf("%s by %q is no way to %s", h.Pod, h.Link, h.Address))
		}
	}
	return errors.Join(errs...)
}

// NetworkOf returns the provider network of an address, false if it is in none.
func (c Config) NetworkOf(a netip.Addr) (Network, bool) {
	i := slices.IndexFunc(c.Networks, func(n Network) bool { return n.Prefix.Contains(a) })
	if i < 0 {
		return Network{}, false
	}
	return c.Networks[i], true
}

// used returns the networks that carry an address, in the order of their prefixes.
func (c Config) used() []Network {
	var addresses []netip.Addr
	for _, l := range c.Legs {
		addresses = append(addresses, l.Addresses...)
	}
	for _, h := range c.Hops {
		addresses = append(addresses, h.Address)
	}
	addresses = append(addresses, c.Left...)
	used := map[netip.Prefix]Network{}
	for _, a := range addresses {
		if n, ok := c.NetworkOf(a); ok {
			used[n.Prefix] = n
		}
	}
	networks := make([]Network, 0, len(used))
	for _, n := range used {
		networks = append(networks, n)
	}
	slices.SortFunc(networks, func(a, b Network) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	return networks
}
