package leg

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// guard is the node's own word on who may send what into the bridge: a pod whose rules are gone, or whose sidecar is in
// foreign hands, still sends with its own addresses only. It needs neither ARP nor neighbour discovery, so everything
// that is not an IP packet with one of the sources of its port is dropped.
//
//	table bridge floatip {
//	  set ports    { type ifname }
//	  set sources4 { type ifname . ipv4_addr }
//	  set sources6 { type ifname . ipv6_addr }
//	  chain legs { type filter hook prerouting priority dstnat
//	    ether type ip  iifname . ip saddr  @sources4 accept
//	    ether type ip6 iifname . ip6 saddr @sources6 accept
//	    iifname @ports drop
//	  }
//	}
type guard struct {
	Ports   map[string]struct{}
	Sources map[source]struct{}
	// Rules is the text form of the chain, "" when there is none.
	Rules string
}

type source struct {
	Port    string
	Address netip.Addr
}

const guardTable = "floatip"

var guardPriority = nftables.ChainPriorityRef(-300) // NF_BR_PRI_NAT_DST_BRIDGED, before everybody else

// layout is the table with its sets, as the library wants them.
type layout struct {
	table              *nftables.Table
	chain              *nftables.Chain
	ports              *nftables.Set
	sources4, sources6 *nftables.Set
}

func newLayout() layout {
	t := &nftables.Table{Name: guardTable, Family: nftables.TableFamilyBridge}
	policy := nftables.ChainPolicyAccept
	return layout{
		table: t,
		chain: &nftables.Chain{
			Name: "legs", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting,
			Priority: guardPriority, Policy: &policy,
		},
		ports: &nftables.Set{Table: t, Name: "ports", KeyType: nftables.TypeIFName},
		sources4: &nftables.Set{Table: t, Name: "sources4", Concatenation: true,
			KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr)},
		sources6: &nftables.Set{Table: t, Name: "sources6", Concatenation: true,
			KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIP6Addr)},
	}
}

// ifname pads a name to IFNAMSIZ as the kernel compares it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func (s source) key() []byte { return append(ifname(s.Port), s.Address.AsSlice()...) }

func (l layout) rules() [][]expr.Any {
	accept := func(etherType uint16, offset, length uint32, set *nftables.Set) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(etherType)},
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, // registers of 16 bytes: 1 and 2 lie next to each other
			&expr.Payload{DestRegister: 2, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
			&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}
	}
	return [][]expr.Any{
		accept(unix.ETH_P_IP, 12, 4, l.sources4),
		accept(unix.ETH_P_IPV6, 8, 16, l.sources6),
		{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Lookup{SourceRegister: 1, SetName: l.ports.Name, SetID: l.ports.ID},
			&expr.Verdict{Kind: expr.VerdictDrop},
		},
	}
}

// ruleText makes rules comparable: kinds and fixed values, without handles.
func ruleText(rules [][]expr.Any) string {
	var b bytes.Buffer
	for _, exprs := range rules {
		for _, e := range exprs {
			switch e := e.(type) {
			case *expr.Meta:
				fmt.Fprintf(&b, "meta %d;", e.Key)
			case *expr.Cmp:
				fmt.Fprintf(&b, "cmp %d %x;", e.Op, e.Data)
			case *expr.Payload:
				fmt.Fprintf(&b, "payload %d %d %d;", e.Base, e.Offset, e.Len)
			case *expr.Lookup:
				fmt.Fprintf(&b, "lookup %s %t;", e.SetName, e.Invert)
			case *expr.Verdict:
				fmt.Fprintf(&b, "verdict %d;", e.Kind)
			default:
				fmt.Fprintf(&b, "%T;", e)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

func (n *Node) nft() (*nftables.Conn, error) {
	if n.ns == nil {
		return nftables.New()
	}
	return nftables.New(nftables.WithNetNSFd(int(n.ns.Fd())))
}

// readGuard fills in what the kernel holds. Rules stays empty where there is no table.
func (n *Node) readGuard(g *guard) error {
	conn, err := n.nft()
	if err != nil {
		return fmt.Errorf("nftables socket: %w", err)
	}
	l := newLayout()
	if _, err := conn.ListTableOfFamily(guardTable, l.table.Family); errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return fmt.Errorf("look for table %s: %w", guardTable, err)
	}
	rules, err := conn.GetRules(l.table, l.chain)
	if err != nil {
		return fmt.Errorf("read table %s: %w", guardTable, err)
	}
	sets, err := conn.GetSets(l.table)
	if err != nil {
		return fmt.Errorf("list sets of table %s: %w", guardTable, err)
	}
	list := make([][]expr.Any, len(rules))
	for i, r := range rules {
		list[i] = r.Exprs
	}
	g.Rules = ruleText(list)
	g.Ports, g.Sources = map[string]struct{}{}, map[source]struct{}{}
	for _, set := range []*nftables.Set{l.ports, l.sources4, l.sources6} {
		if !slices.ContainsFunc(sets, func(s *nftables.Set) bool { return s.Name == set.Name }) {
			g.Rules = "damaged: no set " + set.Name
			return nil
		}
		elements, err := conn.GetSetElements(set)
		if err != nil {
			return fmt.Errorf("read set %s of table %s: %w", set.Name, guardTable, err)
		}
		for _, e := range elements {
			g.add(e.Key)
		}
	}
	return nil
}

// add sorts a set element into Ports or Sources by its length.
func (g *guard) add(key []byte) {
	if len(key) < unix.IFNAMSIZ {
		return
	}
	name := string(bytes.TrimRight(key[:unix.IFNAMSIZ], "\x00"))
	if len(key) == unix.IFNAMSIZ {
		g.Ports[name] = struct{}{}
	} else if a, ok := netip.AddrFromSlice(key[unix.IFNAMSIZ:]); ok {
		g.Sources[source{name, a}] = struct{}{}
	}
}

// applyGuard changes the elements that differ, or the whole table where its rules are not ours, in one transaction.
func (n *Node) applyGuard(want, have guard, changed func(string, ...any)) error {
	if want.Ports == nil {
		return n.removeGuard(have, changed)
	}
	l := newLayout()
	rewrite := have.Rules != ruleText(l.rules())
	if rewrite {
		have = guard{}
	}
	ports, sources := diff(want.Ports, have.Ports), diff(want.Sources, have.Sources)
	if !rewrite && len(ports.Put)+len(ports.Remove)+len(sources.Put)+len(sources.Remove) == 0 {
		return nil
	}
	conn, err := n.nft()
	if err != nil {
		return fmt.Errorf("nftables socket: %w", err)
	}
	if rewrite {
		conn.AddTable(l.table) // makes the deletion succeed where there was none
		conn.DelTable(l.table)
		if err := l.create(conn); err != nil {
			return err
		}
	}
	if err := l.edit(conn, ports, sources); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write table %s: %w", guardTable, err)
	}
	changed("guard: ports +%d -%d, sources +%d -%d", len(ports.Put), len(ports.Remove), len(sources.Put), len(sources.Remove))
	return nil
}

func (n *Node) removeGuard(have guard, changed func(string, ...any)) error {
	if have.Rules == "" && have.Ports == nil {
		return nil
	}
	conn, err := n.nft()
	if err != nil {
		return fmt.Errorf("nftables socket: %w", err)
	}
	conn.DelTable(newLayout().table)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("remove table %s: %w", guardTable, err)
	}
	changed("guard removed")
	return nil
}

func (l layout) create(conn *nftables.Conn) error {
	conn.AddTable(l.table)
	for _, set := range []*nftables.Set{l.ports, l.sources4, l.sources6} {
		if err := conn.AddSet(set, nil); err != nil {
			return fmt.Errorf("set %s of table %s: %w", set.Name, guardTable, err)
		}
	}
	conn.AddChain(l.chain)
	for _, exprs := range l.rules() {
		conn.AddRule(&nftables.Rule{Table: l.table, Chain: l.chain, Exprs: exprs})
	}
	return nil
}

func (l layout) edit(conn *nftables.Conn, ports change[string], sources change[source]) error {
	elements := func(keys [][]byte) []nftables.SetElement {
		list := make([]nftables.SetElement, len(keys))
		for i, k := range keys {
			list[i] = nftables.SetElement{Key: k}
		}
		return list
	}
	edits := []struct {
		set         *nftables.Set
		put, remove [][]byte
	}{
		{l.ports, mapEach(ports.Put, ifname), mapEach(ports.Remove, ifname)},
		{l.sources4, keysOf(sources.Put, false), keysOf(sources.Remove, false)},
		{l.sources6, keysOf(sources.Put, true), keysOf(sources.Remove, true)},
	}
	for _, e := range edits {
		if len(e.put) > 0 {
			if err := conn.SetAddElements(e.set, elements(e.put)); err != nil {
				return err
			}
		}
		if len(e.remove) > 0 {
			if err := conn.SetDeleteElements(e.set, elements(e.remove)); err != nil {
				return err
			}
		}
	}
	return nil
}

func keysOf(sources []source, v6 bool) [][]byte {
	family := slices.DeleteFunc(slices.Clone(sources), func(s source) bool { return s.Address.Is6() != v6 })
	return mapEach(family, source.key)
}

func mapEach[A, B any](list []A, f func(A) B) []B {
	out := make([]B, len(list))
	for i, a := range list {
		out[i] = f(a)
	}
	return out
}
