package leg

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat"
	"floatip.io/floatip/nat/node/nftrule"
)

// The guard is the node's own word on who may send what by a leg: a pod whose rules are gone, or whose sidecar is in
// foreign hands, still sends with its own addresses only. A leg needs neither ARP nor neighbour discovery, so everything
// that is not an IP packet with one of these sources is dropped, before the node's kernel looks at it.
//
//	table netdev floatip {
//	  chain fip0123456789ab { type filter hook ingress device fip0123456789ab priority 0
//	    meta protocol ip  ip saddr  192.168.100.50  accept
//	    meta protocol ip6 ip6 saddr 2001:db8:100::50 accept
//	    drop
//	  }
//	}
//
// Each leg has a chain of its own, which other traffic never meets and which does not grow with the number of legs.

const guardTable = "floatip"

// theTable stands among the guards of ports for the table itself, which outlives the chains.
const theTable = ""

func newGuardTable() *nftables.Table {
	return &nftables.Table{Name: guardTable, Family: nftables.TableFamilyNetdev}
}

func guardChain(port string) *nftables.Chain {
	policy := nftables.ChainPolicyAccept
	return &nftables.Chain{
		Name: port, Table: newGuardTable(), Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress,
		Priority: nftables.ChainPriorityFilter, Policy: &policy, Device: port,
	}
}

// guardRules lets these sources in and nothing else.
func guardRules(sources []netip.Addr) (rules [][]expr.Any) {
	for _, a := range sources {
		rules = append(rules, letIn(a))
	}
	return append(rules, nothingElse)
}

var nothingElse = []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}

func letIn(a netip.Addr) []expr.Any {
	etherType, offset := uint16(unix.ETH_P_IP), uint32(12)
	if a.Is6() {
		etherType, offset = unix.ETH_P_IPV6, 8
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(etherType)},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(a.AsSlice()))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}
}

// guardTexts makes the texts that guards are compared by. It remembers those of the last time, since there is one for each leg.
// The zero guardTexts remembers nothing.
type guardTexts struct{ last, now map[netip.Addr]string }

// again forgets what was not asked for since the call before.
func (t *guardTexts) again() *guardTexts {
	t.last, t.now = t.now, make(map[netip.Addr]string, len(t.now))
	return t
}

func (t *guardTexts) of(sources []netip.Addr) string {
	lines := make([]string, 0, 2)
	for _, a := range sources {
		text, known := t.last[a]
		if !known {
			text = nat.RuleText(nftables.TableFamilyNetdev, letIn(a))
		}
		if t.now != nil {
			t.now[a] = text
		}
		lines = append(lines, text)
	}
	return guardText(append(lines, nothingElseText))
}

var nothingElseText = nat.RuleText(nftables.TableFamilyNetdev, nothingElse)

// guardText is the text of a guard with these rules.
func guardText(rules []string) string { return strings.Join(rules, "\n") }

func (n *Node) nft() (*nftables.Conn, error) {
	options := []nftables.ConnOption{nftables.AsLasting()}
	if n.ns != nil {
		options = append(options, nftables.WithNetNSFd(int(n.ns.Fd())))
	}
	conn, err := nftables.New(options...)
	if err != nil {
		return nil, fmt.Errorf("nftables socket: %w", err)
	}
	return conn, nil
}

// release closes a socket that rules were deleted by. The kernel keeps the one who closes it waiting until no processor can be
// looking at them any more (net/netfilter/nf_tables_api.c, nft_rcv_nl_event), 7 to 19 ms on two busy cores; who goes on to make
// a route has no need of that.
func release(conn *nftables.Conn) { go conn.CloseLasting() }

// readGuards fills in what the kernel holds for each port. Some kernels keep the chain of a link that went.
func (n *Node) readGuards(guards map[string]string) error {
	conn, err := n.nft()
	if err != nil {
		return err
	}
	defer conn.CloseLasting()
	if _, err := conn.ListTableOfFamily(guardTable, nftables.TableFamilyNetdev); errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return fmt.Errorf("look for table %s: %w", guardTable, err)
	}
	guards[theTable] = ""
	chains, err := guardChains(conn)
	if err != nil {
		return err
	}
	raw, err := nftrule.Dial(n.ns)
	if err != nil {
		return err
	}
	defer raw.Close()
	texts, err := n.texts.Read(raw, newGuardTable())
	if err != nil {
		return fmt.Errorf("read rules of table %s: %w", guardTable, err)
	}
	for _, c := range chains {
		guards[c.Name] = guardText(texts[c.Name])
	}
	return nil
}

func guardChains(conn *nftables.Conn) ([]*nftables.Chain, error) {
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return nil, fmt.Errorf("list chains of table %s: %w", guardTable, err)
	}
	return slices.DeleteFunc(chains, func(c *nftables.Chain) bool { return c.Table.Name != guardTable }), nil
}

// guardsAtOnce is how many ports' guards one transaction writes. A batch has to fit into the socket's send buffer and the
// kernel's acknowledgements of its messages into the receive buffer (208 KiB each by default, socket(7)): 300 guards did
// not fit into the former, 64 not into the latter. Guards of two ports have nothing to do with each other.
const guardsAtOnce = 16

// setGuards writes the guards of these ports.
func (a application) setGuards(ports []string) error {
	for some := range slices.Chunk(ports, guardsAtOnce) {
		sources := map[string][]netip.Addr{}
		for _, name := range some {
			sources[name] = a.want.sources[name]
		}
		if err := a.node.writeGuards(sources); err != nil {
			return err
		}
		a.report.changed("guard of %v", some)
	}
	return nil
}

func (n *Node) writeGuards(sources map[string][]netip.Addr) error {
	conn, err := n.nft()
	if err != nil {
		return err
	}
	defer release(conn)
	conn.AddTable(newGuardTable())
	for _, name := range sortedKeys(sources) {
		if name == theTable {
			continue
		}
		chain := guardChain(name)
		conn.AddChain(chain)
		conn.FlushChain(chain)
		for _, exprs := range guardRules(sources[name]) {
			conn.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: exprs})
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write table %s: %w", guardTable, err)
	}
	return nil
}

// removeGuards deletes the chains of legs that are gone, and the table with the last one.
func (a application) removeGuards(ports []string) error {
	if slices.Contains(ports, theTable) {
		return a.removeSomeGuards([]string{theTable})
	}
	for some := range slices.Chunk(ports, guardsAtOnce) {
		if err := a.removeSomeGuards(some); err != nil {
			return err
		}
	}
	return nil
}

func (a application) removeSomeGuards(ports []string) error {
	conn, err := a.node.nft()
	if err != nil {
		return err
	}
	defer release(conn)
	if slices.Contains(ports, theTable) {
		conn.DelTable(newGuardTable())
	} else {
		chains, err := guardChains(conn) // most went with their links
		if err != nil {
			return err
		}
		for _, c := range chains {
			if slices.Contains(ports, c.Name) {
				conn.FlushChain(c)
				conn.DelChain(c)
			}
		}
	}
	return a.removed(conn.Flush(), "guard of %v", ports)
}
