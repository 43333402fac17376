package fastpath

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	vishnetlink "github.com/vishvananda/netlink"
	vishnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat"
	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/nat/node/netns"
	"floatip.io/floatip/nat/node/nftrule"
)

// Table is the name of the table, of family netdev.
const Table = "floatip_fast"

// Node is the fast path of a node's kernel. Each Apply reads what is there; what is remembered besides saves work alone. Not for
// concurrent use, but for Adopt.
type Node struct {
	ns      *os.File
	sysctls string

	texts nat.Texts
	last  blueprint
	// stands are the addresses that are in the table since the last Apply, with their links; nil: not known.
	stands map[netip.Addr]int
}

// Open returns the Node of the network namespace ns, or of the process where ns is nil. sysctls is where the namespace's
// /proc/sys/net is.
func Open(ns *os.File, sysctls string) *Node { return &Node{ns: ns, sysctls: sysctls} }

// ErrStrict: connection tracking on this node takes up no connection in the middle, so that one which leaves the fast
// path would end.
var ErrStrict = errors.New("net.netfilter.nf_conntrack_tcp_loose is 0")

// Allowed returns ErrStrict where the node's settings forbid a fast path, or why they could not be read.
func (n *Node) Allowed() error {
	return netns.Do(n.ns, func() error {
		raw, err := os.ReadFile(filepath.Join(n.sysctls, "netfilter/nf_conntrack_tcp_loose"))
		switch {
		case errors.Is(err, os.ErrNotExist): // no connection tracking
			return nil
		case err == nil && strings.TrimSpace(string(raw)) == "0":
			return ErrStrict
		}
		return err
	})
}

func table() *nftables.Table {
	return &nftables.Table{Name: Table, Family: nftables.TableFamilyNetdev}
}

// Withdraw takes the addresses that have no leg in c, or another one than before, from the fast path, so that their packets
// meet the node's routes. It is for the moment before these change. links are the numbers of the node's links, by name.
func (n *Node) Withdraw(c leg.Config, links map[string]int) (report leg.Report, err error) {
	want := state{legs: ways(c, links).legs()}
	if n.stands != nil && len(gone(want, state{legs: n.stands})) == 0 {
		return report, nil // nobody else adds any
	}
	n.stands = nil
	k, err := n.open()
	if err != nil {
		return report, err
	}
	defer k.close()
	have := state{legs: map[netip.Addr]int{}}
	if err := k.readLegs(&have); err != nil {
		return report, err
	}
	if have.damaged {
		return report, k.removeTable(state{legs: have.legs, there: true}, &report)
	}
	if len(have.legs) == 0 {
		return report, nil
	}
	left := gone(want, have)
	if len(left) == 0 {
		return report, nil
	}
	return report, errors.Join(k.take(left, &report), leg.ForgetHalfOpen(k.routes, left))
}

// Apply makes the kernel let packets of the addresses pass as c says, and nothing else. What is there already is not
// touched. links as for Withdraw. A kernel that cannot forward at the ingress makes it fail with ErrNotSupported, and holds
// nothing then.
func (n *Node) Apply(c leg.Config, links map[string]int) (report leg.Report, err error) {
	k, err := n.open()
	if err != nil {
		return report, err
	}
	defer k.close()
	n.stands = nil
	have, err := k.read(&n.texts)
	if err != nil {
		return report, err
	}
	want := n.last.desired(c, links)
	if have.damaged || len(want.legs) == 0 {
		if err := k.removeTable(have, &report); err != nil {
			return report, err
		}
		have = state{}
	}
	todo := difference(want.state, have)
	if todo.empty() {
		n.stands = want.legs
		return report, nil
	}
	if err := k.write(want, todo, &report); err != nil {
		have.there = true
		return report, errors.Join(err, k.removeTable(have, &report))
	}
	n.stands = want.legs
	return report, nil
}

// kernel is the sockets of one call.
type kernel struct {
	nft    *nftables.Conn
	raw    *netlink.Conn
	routes *vishnetlink.Handle // links and connection tracking
}

func (n *Node) open() (*kernel, error) {
	options := []nftables.ConnOption{nftables.AsLasting()}
	if n.ns != nil {
		options = append(options, nftables.WithNetNSFd(n.fd()))
	}
	nft, err := nftables.New(options...)
	if err != nil {
		return nil, fmt.Errorf("nftables socket: %w", err)
	}
	raw, err := nftrule.Dial(n.ns)
	if err != nil {
		nft.CloseLasting()
		return nil, err
	}
	at := vishnetns.None()
	if n.ns != nil {
		at = vishnetns.NsHandle(int(n.ns.Fd()))
	}
	routes, err := vishnetlink.NewHandleAt(at, unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		nft.CloseLasting()
		raw.Close()
		return nil, fmt.Errorf("netlink socket of the node: %w", err)
	}
	return &kernel{nft, raw, routes}, nil
}

// links returns the numbers of the node's links, by name.
func (k *kernel) links() (surroundings, error) {
	list, err := k.routes.LinkList()
	if err != nil && !errors.Is(err, vishnetlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list links: %w", err)
	}
	links := surroundings{}
	for _, l := range list {
		links[l.Attrs().Name] = l.Attrs().Index
	}
	return links, nil
}

// close gives the sockets back beside: the kernel keeps who closes one that deleted rules waiting until no processor looks
// at them any more (nft_rcv_nl_event in net/netfilter/nf_tables_api.c).
func (k *kernel) close() {
	go func() {
		k.nft.CloseLasting()
		k.raw.Close()
		k.routes.Close()
	}()
}

func (k *kernel) read(known *nat.Texts) (state, error) {
	s := state{chains: map[string]string{}, legs: map[netip.Addr]int{}}
	if _, err := k.nft.ListTableOfFamily(Table, nftables.TableFamilyNetdev); errors.Is(err, unix.ENOENT) {
		return s, nil
	} else if err != nil {
		return s, fmt.Errorf("look for table %s: %w", Table, err)
	}
	s.there = true
	chains, err := k.nft.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return s, fmt.Errorf("list chains of table %s: %w", Table, err)
	}
	texts, err := known.Read(k.raw, table())
	if err != nil {
		return s, fmt.Errorf("read rules of table %s: %w", Table, err)
	}
	for _, c := range chains {
		if c.Table.Name != Table {
			continue
		}
		text := ""
		for _, rule := range texts[c.Name] {
			text += rule + "\n"
		}
		s.chains[c.Name] = text
	}
	return s, k.readLegs(&s)
}

func (k *kernel) readLegs(s *state) error {
	for _, f := range []family{ipv4, ipv6} {
		elements, err := k.nft.GetSetElements(f.legsMap())
		if err != nil && !isGone(err) {
			return fmt.Errorf("read map %s of table %s: %w", f.legs(), Table, err)
		}
		here, err := k.nft.GetSetElements(f.addresses())
		if err != nil && !isGone(err) {
			return fmt.Errorf("read set %s of table %s: %w", f.here(), Table, err)
		}
		for _, e := range elements {
			if a, ok := netip.AddrFromSlice(e.Key); ok {
				s.legs[a] = int(binaryutil.NativeEndian.Uint32(e.Val))
			}
		}
		same := len(here) == len(elements)
		for _, e := range here {
			a, ok := netip.AddrFromSlice(e.Key)
			_, known := s.legs[a]
			same = same && ok && known
		}
		s.damaged = s.damaged || !same
	}
	return nil
}

// isGone reports that an object does not exist. The library keeps only the text of some errors.
func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || strings.HasSuffix(err.Error(), unix.ENOENT.Error())
}

func (f family) addresses() *nftables.Set {
	return &nftables.Set{Table: table(), Name: f.here(), KeyType: f.keyType, Size: addressesMost}
}

func (f family) legsMap() *nftables.Set {
	return &nftables.Set{
		Table: table(), Name: f.legs(), IsMap: true, KeyType: f.keyType, DataType: nftables.TypeIFIndex,
		Size: addressesMost,
	}
}

// flowSets are the sets that packets write.
func (f family) flowSets() (sets []*nftables.Set) {
	key := nftables.MustConcatSetType(f.keyType, f.keyType, nftables.TypeInetService, nftables.TypeInetService)
	for _, s := range []struct {
		name string
		size uint32
	}{
		{f.flows("tcp"), tcpFlows}, {f.flows("udp"), udpFlows}, {f.seen("tcp"), seenMost}, {f.seen("udp"), seenMost},
	} {
		sets = append(sets, &nftables.Set{
			Table: table(), Name: s.name, KeyType: key, Concatenation: true, Dynamic: true, HasTimeout: true, Size: s.size,
		})
	}
	return sets
}

// chainsAtOnce is how many chains one transaction writes: see guardsAtOnce of package leg.
const chainsAtOnce = 16

// write makes sets and chains, then their rules, then the addresses: nothing is forwarded before the last step.
func (k *kernel) write(want plan, todo changes, report *leg.Report) error {
	if err := k.take(todo.take, report); err != nil {
		return err
	}
	if err := k.create(want, todo.write); err != nil {
		return err
	}
	for _, some := range callees(todo.write, want.at) {
		var chains []nftrule.Chain
		for _, name := range some {
			chains = append(chains, nftrule.Chain{Name: name, Rules: want.rules[name]})
		}
		if err := nftrule.Write(k.raw, table(), chains); err != nil {
			if want.at[some[0]] == "" { // a chain at a link may have gone with it, the others are there
				err = supported(err)
			}
			return fmt.Errorf("rules of table %s: %w", Table, err)
		}
		report.Changes = append(report.Changes, fmt.Sprintf("fast path: rules of %v", some))
	}
	if err := k.put(want, todo.put, report); err != nil {
		return err
	}
	// Somebody may have taken the table away, and with it the flows. Those go on by the ordinary way.
	return errors.Join(leg.ForgetHalfOpen(k.routes, todo.put), k.removeChains(todo.remove, report))
}

// callees returns what is written at once: first the chains that others lead to, then those at links, which lead to them.
func callees(names []string, at map[string]string) [][]string {
	var callees, callers []string
	for _, name := range names {
		if at[name] == "" {
			callees = append(callees, name)
		} else {
			callers = append(callers, name)
		}
	}
	return append(slices.Collect(slices.Chunk(callees, chainsAtOnce)), slices.Collect(slices.Chunk(callers, chainsAtOnce))...)
}

func (k *kernel) create(want plan, chains []string) error {
	k.nft.AddTable(table())
	for _, f := range []family{ipv4, ipv6} {
		if !want.has(f) {
			continue
		}
		for i, s := range append(f.flowSets(), f.addresses(), f.legsMap()) {
			s.ID = uint32(i) + 1 // the library's own numbers are counted for the whole process without a lock
			if f.size == ipv6.size {
				s.ID += 100
			}
			if err := k.nft.AddSet(s, nil); err != nil {
				return fmt.Errorf("set %s: %w", s.Name, err)
			}
		}
	}
	if err := k.nft.Flush(); err != nil {
		return fmt.Errorf("sets of table %s: %w", Table, err)
	}
	policy, priority := nftables.ChainPolicyAccept, nftables.ChainPriority(*nftables.ChainPriorityFilter+1)
	for some := range slices.Chunk(chains, chainsAtOnce) {
		for _, name := range some {
			c := &nftables.Chain{Table: table(), Name: name}
			if device := want.at[name]; device != "" {
				c.Type, c.Hooknum, c.Priority = nftables.ChainTypeFilter, nftables.ChainHookIngress, &priority
				c.Policy, c.Device = &policy, device
			}
			k.nft.AddChain(c)
		}
		if err := k.nft.Flush(); err != nil {
			return fmt.Errorf("chains %v of table %s: %w", some, Table, err)
		}
	}
	return nil
}

// take removes addresses.
func (k *kernel) take(addresses []netip.Addr, report *leg.Report) error {
	return k.elements(addresses, nil, k.nft.SetDeleteElements, "no more", report)
}

func (k *kernel) put(want plan, addresses []netip.Addr, report *leg.Report) error {
	return k.elements(addresses, want.legs, k.nft.SetAddElements, "by its leg", report)
}

// elementsAtOnce is how many elements one message names: an attribute ends at 64 KiB.
const elementsAtOnce = 512

func (k *kernel) elements(addresses []netip.Addr, legs map[netip.Addr]int,
	do func(*nftables.Set, []nftables.SetElement) error, what string, report *leg.Report) error {
	for some := range slices.Chunk(addresses, elementsAtOnce) {
		for _, f := range []family{ipv4, ipv6} {
			var list, here []nftables.SetElement
			for _, a := range some {
				if familyOf(a) != f {
					continue
				}
				e := nftables.SetElement{Key: a.AsSlice()}
				if legs != nil {
					e.Val = binaryutil.NativeEndian.PutUint32(uint32(legs[a]))
				}
				list, here = append(list, e), append(here, nftables.SetElement{Key: e.Key})
				report.Changes = append(report.Changes, fmt.Sprintf("fast path: %s %s", a, what))
			}
			if len(list) == 0 {
				continue
			}
			if err := errors.Join(do(f.legsMap(), list), do(f.addresses(), here)); err != nil {
				return fmt.Errorf("map %s: %w", f.legs(), err)
			}
		}
		if err := k.nft.Flush(); err != nil {
			return fmt.Errorf("addresses of table %s: %w", Table, err)
		}
	}
	return nil
}

// removeChains deletes chains of links and networks that are no more; those of links may have gone with them.
func (k *kernel) removeChains(names []string, report *leg.Report) error {
	for some := range slices.Chunk(names, chainsAtOnce) {
		for _, name := range some {
			k.nft.FlushChain(&nftables.Chain{Table: table(), Name: name})
		}
		if err := k.nft.Flush(); err != nil && !isGone(err) {
			return fmt.Errorf("empty chains %v of table %s: %w", some, Table, err)
		}
	}
	for some := range slices.Chunk(names, chainsAtOnce) {
		for _, name := range some {
			k.nft.DelChain(&nftables.Chain{Table: table(), Name: name})
		}
		if err := k.nft.Flush(); err != nil && !isGone(err) {
			return fmt.Errorf("remove chains %v of table %s: %w", some, Table, err)
		}
		report.Changes = append(report.Changes, fmt.Sprintf("fast path: no chains %v", some))
	}
	return nil
}

func (k *kernel) removeTable(have state, report *leg.Report) error {
	if !have.there {
		return nil
	}
	k.nft.AddTable(table()) // makes the deletion succeed where there is none
	k.nft.DelTable(table())
	if err := k.nft.Flush(); err != nil {
		return fmt.Errorf("remove table %s: %w", Table, err)
	}
	report.Changes = append(report.Changes, "fast path: none")
	return leg.ForgetHalfOpen(k.routes, slices.Collect(maps.Keys(have.legs)))
}

// ErrNotSupported: this kernel cannot forward packets at the ingress of a link.
var ErrNotSupported = errors.New("the kernel has no forwarding at the ingress (CONFIG_NFT_FWD_NETDEV)")

// supported tells a kernel without the means from other errors of writing rules: it does not know the expression.
func supported(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return err
}
