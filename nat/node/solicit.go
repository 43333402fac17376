package node

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/announce"
	"floatip.io/floatip/nat/node/leg"
)

// solicitBuffer is how much the kernel may have to say about neighbours before a subscription breaks, in bytes: about a
// thousand changes with what the kernel adds to each (its default holds some 250), as when a guest looks for everybody.
const solicitBuffer = 1 << 20

// solicitor asks the hosts of a provider LAN for their Ethernet addresses where the NIC has no IPv4 address there. The
// kernel would ask in the name of another address of the node, which hosts that filter by reverse path do not answer,
// nor do routers that look at the sender. On these NICs it asks the agent first (net.ipv4.neigh.NIC.app_solicit, arp(7)),
// which asks in the name of a floating address that is answered for there. Without an agent the kernel asks as ever, a
// second later.
type solicitor struct {
	netns *os.File
	log   *slog.Logger

	group sync.WaitGroup

	mu   sync.Mutex // guards what follows
	bare []bareNIC
	work map[string]*asking // by NIC
	stop context.CancelFunc // ends the watch; nil while there is no bare NIC
}

// bareNIC is a NIC without an address of its own on the network.
type bareNIC struct {
	name    string
	network netip.Prefix
	sender  netip.Addr
}

type asking struct {
	*announce.Asker
	stop context.CancelFunc
}

func newSolicitor(o Options) *solicitor {
	return &solicitor{netns: o.NetNS, log: o.Log, work: map[string]*asking{}}
}

// bareNICs are those that need help, with an address that is answered for on each of them.
func bareNICs(networks []leg.Network, byNIC map[string]audible) (list []bareNIC) {
	for _, n := range networks {
		if !n.Bare {
			continue
		}
		for _, a := range byNIC[n.Interface].answered {
			if n.Prefix.Contains(a) {
				list = append(list, bareNIC{n.Interface, n.Prefix, a})
				break
			}
		}
	}
	return list
}

// set makes bare the NICs that are looked after until ctx is done.
func (s *solicitor) set(ctx context.Context, bare []bareNIC) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bare = bare
	wanted := map[string]bool{}
	for _, nic := range bare {
		wanted[nic.name] = true
		if s.work[nic.name] == nil {
			s.work[nic.name] = s.start(ctx, nic.name)
		}
	}
	for name, w := range s.work {
		if !wanted[name] {
			w.stop()
			delete(s.work, name)
		}
	}
	switch {
	case len(bare) > 0 && s.stop == nil:
		ctx, s.stop = context.WithCancel(ctx)
		s.watch(ctx)
	case len(bare) == 0 && s.stop != nil:
		s.stop()
		s.stop = nil
	}
}

func (s *solicitor) start(ctx context.Context, nic string) *asking {
	a := &announce.Asker{NIC: nic, NetNS: s.netns, Log: s.log, Found: func(host netip.Addr, mac net.HardwareAddr) {
		if err := leg.Resolve(s.netns, nic, host, mac); err != nil {
			s.log.Info("could not tell the kernel of a host of the LAN", "host", host, "interface", nic, "reason", err)
		}
	}}
	ctx, stop := context.WithCancel(ctx)
	s.group.Go(func() { a.Run(ctx) })
	return &asking{a, stop}
}

// watch waits for questions of the kernel (RTM_GETNEIGH to the group of neighbours: net/core/neighbour.c, neigh_app_ns).
func (s *solicitor) watch(ctx context.Context) {
	w := newKernelWatch(s.netns, func() {}, s.log)
	s.group.Go(func() { s.follow(ctx, w) })
}

func (s *solicitor) follow(ctx context.Context, w kernelWatch) {
	follow(ctx, w, "neighbours", func(c chan<- netlink.NeighUpdate, done <-chan struct{}) error {
		return netlink.NeighSubscribeWithOptions(c, done, netlink.NeighSubscribeOptions{
			Namespace: w.at, ReceiveBufferSize: solicitBuffer, ReceiveBufferForceSize: true,
		})
	}, func(u netlink.NeighUpdate) bool {
		if host, ok := netip.AddrFromSlice(u.IP); ok && u.Type == unix.RTM_GETNEIGH {
			s.ask(host.Unmap())
		}
		return false
	})
}

// wait waits for the end of everything. The context of set must be done.
func (s *solicitor) wait() { s.group.Wait() }

func (s *solicitor) ask(host netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, nic := range s.bare {
		if nic.network.Contains(host) {
			s.work[nic.name].Ask(nic.sender, host)
			return
		}
	}
}
