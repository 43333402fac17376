package nat

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// attempts bounds how often Apply starts over because somebody else changed our objects between reading and writing.
const attempts = 5

// Apply makes the kernel hold exactly want, in one transaction: no packet sees a mixture. Established connections and
// the figures of counters that stay are untouched, and so is everything that is not ours. It fails with
// ErrNotPermitted, ErrNotSupported or an error of the system, and then nothing has changed.
func (k *Kernel) Apply(want Tables) error {
	have, err := k.Read()
	if err != nil {
		return err
	}
	return k.Replace(have, want)
}

// Replace is Apply for a caller who has just read what the kernel holds.
func (k *Kernel) Replace(have, want Tables) error {
	for attempt := 1; ; attempt++ {
		err := write(k.nft, want, have)
		if err == nil {
			return nil
		}
		if !lostRace(err) || attempt == attempts {
			return fmt.Errorf("write nft rules: %w", explainWrite(err))
		}
		if have, err = k.Read(); err != nil {
			return err
		}
	}
}

// lostRace reports that somebody may have changed our objects after they were read: deleted one, made one, made one of
// another kind (EOPNOTSUPP for a chain, nf_tables_updchain in net/netfilter/nf_tables_api.c), or uses one.
func lostRace(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) ||
		errors.Is(err, unix.EOPNOTSUPP)
}

// Remove deletes all that is ours and leaves the tables to their owner.
func (k *Kernel) Remove() error { return k.Apply(Tables{}) }

func write(conn *nftables.Conn, want, have Tables) error {
	sets := uint32(0) // of this transaction
	for i, id := range families {
		if want[i].Empty() && have[i].Empty() {
			continue
		}
		table := &nftables.Table{Name: TableName, Family: id}
		conn.AddTable(table)
		sweep(conn, table, want[i], have[i])
		if err := fill(conn, table, want[i], &sets); err != nil {
			return err
		}
	}
	return conn.Flush()
}

// sweep empties our chains and sets and deletes those that want has not, or declares differently.
func sweep(conn *nftables.Conn, table *nftables.Table, want, have Table) {
	for _, c := range have.Chains {
		conn.FlushChain(&nftables.Chain{Table: table, Name: c.Name})
	}
	for _, c := range have.Chains {
		if !slices.ContainsFunc(want.Chains, c.sameDeclaration) {
			conn.DelChain(&nftables.Chain{Table: table, Name: c.Name})
		}
	}
	for _, s := range have.Sets {
		set := &nftables.Set{Table: table, Name: s.Name}
		if slices.ContainsFunc(want.Sets, s.sameDeclaration) {
			conn.FlushSet(set)
		} else {
			conn.DelSet(set)
		}
	}
	for _, name := range have.Counters {
		if !slices.Contains(want.Counters, name) {
			conn.DeleteObject(&nftables.NamedObj{Table: table, Name: name, Type: nftables.ObjTypeCounter})
		}
	}
}

func fill(conn *nftables.Conn, table *nftables.Table, want Table, sets *uint32) error {
	for _, name := range want.Counters {
		conn.AddObj(&nftables.NamedObj{Table: table, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	}
	for _, s := range want.Sets {
		*sets++
		if err := s.add(conn, table, *sets); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	for _, c := range want.Chains {
		c.add(conn, table)
	}
	for _, c := range want.Chains {
		for _, r := range c.Rules {
			conn.AddRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: c.Name}, Exprs: r.exprs})
		}
	}
	return nil
}

// datatypes are the key types of our sets by their nft names.
var datatypes = map[string]nftables.SetDatatype{
	nftables.TypeIPAddr.Name:  nftables.TypeIPAddr,
	nftables.TypeIP6Addr.Name: nftables.TypeIP6Addr,
	nftables.TypeIFName.Name:  nftables.TypeIFName,
	portType.Name:             portType,
	ipv4.entryType().Name:     ipv4.entryType(),
	ipv6.entryType().Name:     ipv6.entryType(),
}

// add makes the set with a number that no other one of the transaction has. The library's own numbers are counted for the
// whole process without a lock, and several namespaces may be written at the same time.
func (s Set) add(conn *nftables.Conn, table *nftables.Table, number uint32) error {
	set := &nftables.Set{
		Table: table, Name: s.Name, ID: number, KeyType: datatypes[s.Type], Interval: s.Interval,
		Concatenation: strings.Contains(s.Type, " . "),
	}
	if s.Type == nftables.TypeIFName.Name {
		set.KeyByteOrder = binaryutil.NativeEndian // or nft lists the names backwards, as nothing
	}
	var elements []nftables.SetElement
	for _, e := range s.Elements {
		elements = append(elements, nftables.SetElement{Key: []byte(e.Key), KeyEnd: []byte(e.Last), IntervalEnd: e.End})
	}
	return conn.AddSet(set, elements)
}

func (c Chain) add(conn *nftables.Conn, table *nftables.Table) {
	chain := &nftables.Chain{Table: table, Name: c.Name, Type: c.Type}
	if c.Type != "" {
		chain.Hooknum, chain.Priority, chain.Policy = &c.Hook, &c.Priority, &c.Policy
	}
	conn.AddChain(chain)
}
