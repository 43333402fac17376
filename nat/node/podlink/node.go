package podlink

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat"
)

// Node is the nftables of the node. It remembers nothing: each call reads what is there. Not for concurrent use.
type Node struct{ ns *os.File }

// Open returns the Node of the network namespace ns, or of the process where ns is nil.
func Open(ns *os.File) *Node { return &Node{ns: ns} }

func (n *Node) nft() (*nftables.Conn, error) {
	var options []nftables.ConnOption
	if n.ns != nil {
		options = append(options, nftables.WithNetNSFd(int(n.ns.Fd())))
	}
	conn, err := nftables.New(options...)
	if err != nil {
		return nil, fmt.Errorf("nftables socket: %w", err)
	}
	return conn, nil
}

// read returns what the table of the layout's family holds. A table whose rules or sets are not the layout's has other
// Rules, and no Elements but the translations, which are needed to forget what was translated.
func (n *Node) read(l layout) (table, error) {
	conn, err := n.nft()
	if err != nil {
		return table{}, err
	}
	if _, err := conn.ListTableOfFamily(tableName, l.table.Family); errors.Is(err, unix.ENOENT) {
		return table{}, nil
	} else if err != nil {
		return table{}, fmt.Errorf("look for table %s: %w", tableName, err)
	}
	sets, err := conn.GetSets(l.table)
	if err != nil {
		return table{}, fmt.Errorf("list sets of table %s: %w", tableName, err)
	}
	t := table{Rules: "damaged", Elements: map[element]string{}}
	whole := true
	for _, name := range sortedSets(l.sets) {
		i := slices.IndexFunc(sets, func(s *nftables.Set) bool { return s.Name == name })
		if i < 0 {
			whole = false
			continue
		}
		elements, err := conn.GetSetElements(sets[i])
		if err != nil {
			return table{}, fmt.Errorf("read set %s of table %s: %w", name, tableName, err)
		}
		for _, e := range elements {
			if zero := strings.Trim(string(e.Key), "\x00") == ""; e.IntervalEnd && zero {
				continue // the kernel's own mark before the first interval
			}
			t.Elements[element{Set: name, Key: string(e.Key), Last: string(e.KeyEnd), End: e.IntervalEnd}] = string(e.Val)
		}
	}
	if whole {
		t.Rules, err = n.readRules(conn, l)
	}
	return t, err
}

// Report says what an Apply has changed.
type Report struct {
	// Changes has one line per change. It is empty when the kernel held all before.
	Changes []string
	// Forgotten is how many tracked connections were deleted.
	Forgotten int
}

// Apply makes the kernel hold what c says, in one transaction for each family, and forgets the connections of addresses
// that went, or that lead to another pod now. What is there already is not touched: neither connections nor counters
// notice a second Apply.
func (n *Node) Apply(c Config) (Report, error) {
	var r Report
	var errs []error
	before, after := map[netip.Addr]netip.Addr{}, map[netip.Addr]netip.Addr{}
	for _, l := range layouts() {
		have, err := n.read(l)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		want := l.desired(c)
		changed, err := n.write(l, want, have)
		if err != nil {
			errs = append(errs, fmt.Errorf("write table %s: %w", tableName, err))
			continue
		}
		if changed != "" {
			r.Changes = append(r.Changes, changed)
		}
		for floating, pod := range have.translations() {
			before[floating] = pod
		}
		for floating, pod := range want.translations() {
			after[floating] = pod
		}
	}
	forgotten, err := n.forget(before, after)
	r.Forgotten = forgotten
	return r, errors.Join(append(errs, err)...)
}

func (n *Node) write(l layout, want, have table) (string, error) {
	if want.Rules == "" {
		return n.remove(l, have)
	}
	rewrite := have.Rules != want.Rules
	if rewrite {
		have = table{}
	}
	c := difference(want, have)
	if !rewrite && c.empty() {
		return "", nil
	}
	conn, err := n.nft()
	if err != nil {
		return "", err
	}
	if rewrite {
		conn.AddTable(l.table) // makes the deletion succeed where there was none
		conn.DelTable(l.table)
		if err := l.create(conn); err != nil {
			return "", err
		}
		if err := errors.Join(conn.Flush(), n.addRules(l)); err != nil {
			return "", err
		}
	}
	if err := l.edit(conn, c, want, have); err != nil {
		return "", err
	}
	if err := conn.Flush(); err != nil {
		return "", err
	}
	family := map[bool]string{false: "ip", true: "ip6"}[l.v6]
	return fmt.Sprintf("table %s %s: elements +%d -%d, rules written: %t", family, tableName, len(c.Put), len(c.Remove),
		rewrite), nil
}

func (n *Node) remove(l layout, have table) (string, error) {
	if have.Rules == "" {
		return "", nil
	}
	conn, err := n.nft()
	if err != nil {
		return "", err
	}
	conn.DelTable(l.table)
	return "table " + tableName + " removed", conn.Flush()
}

func (l layout) set(name string) *nftables.Set {
	d := l.sets[name]
	s := &nftables.Set{
		Table: l.table, Name: name, KeyType: d.Key, DataType: d.Value, IsMap: d.Map, Interval: d.Interval,
		Concatenation: d.Concat, Counter: d.Count,
	}
	if d.Key.Name == nftables.TypeIFName.Name {
		s.KeyByteOrder = binaryutil.NativeEndian // or nft lists the names backwards, as nothing
	}
	return s
}

func (l layout) create(conn *nftables.Conn) error {
	conn.AddTable(l.table)
	for i, name := range sortedSets(l.sets) {
		set := l.set(name)
		set.ID = uint32(i) + 1 // the library's own numbers are counted for the whole process without a lock
		if err := conn.AddSet(set, nil); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	policy := nftables.ChainPolicyAccept
	for _, c := range l.chains {
		made := &nftables.Chain{Table: l.table, Name: c.Name}
		if c.Hook != nil {
			made.Type, made.Hooknum, made.Priority, made.Policy = c.Kind, c.Hook, &c.Priority, &policy
		}
		conn.AddChain(made)
	}
	return nil
}

// edit removes before it puts: an element with another value is both.
func (l layout) edit(conn *nftables.Conn, c change, want, have table) error {
	for _, step := range []struct {
		elements []element
		values   map[element]string
		do       func(*nftables.Set, []nftables.SetElement) error
	}{{c.Remove, have.Elements, conn.SetDeleteElements}, {c.Put, want.Elements, conn.SetAddElements}} {
		bySet := map[string][]nftables.SetElement{}
		for _, e := range step.elements {
			one := nftables.SetElement{Key: []byte(e.Key), KeyEnd: []byte(e.Last), IntervalEnd: e.End}
			if l.sets[e.Set].Map {
				one.Val = []byte(step.values[e])
			}
			bySet[e.Set] = append(bySet[e.Set], one)
		}
		for _, name := range sortedSets(l.sets) {
			if len(bySet[name]) == 0 {
				continue
			}
			if err := step.do(l.set(name), bySet[name]); err != nil {
				return fmt.Errorf("set %s: %w", name, err)
			}
		}
	}
	return nil
}

// forget deletes what connection tracking knows of translations that are no more, and of what a pod opened before its
// translation came and nobody answered: it may stay bound to the node's address for as long as the guest repeats it.
func (n *Node) forget(before, after map[netip.Addr]netip.Addr) (int, error) {
	gone, fresh := map[netip.Addr]bool{}, map[netip.Addr]netip.Addr{}
	for floating, pod := range before {
		if now, ok := after[floating]; !ok || now != pod {
			gone[floating] = true
		}
	}
	for floating, pod := range after {
		if was, ok := before[floating]; !ok || was != pod {
			fresh[pod] = floating
		}
	}
	if len(gone)+len(fresh) == 0 {
		return 0, nil
	}
	var c nat.Config
	if n.ns != nil {
		c.NetNS = int(n.ns.Fd())
	}
	count, err := nat.ForgetFlows(c, func(f nat.Flow) bool {
		if gone[f.Destination] || gone[f.ReplyDestination] {
			return true
		}
		floating, opened := fresh[f.Source]
		return opened && !f.Answered && f.ReplyDestination != floating
	})
	if errors.Is(err, nat.ErrNotSupported) {
		return count, nil // connection tracking is not loaded: nothing to forget
	}
	return count, err
}
