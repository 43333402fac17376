package nat

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
)

// Read returns what floatip has in the kernel now. A table that does not exist holds nothing. It fails with
// ErrNotPermitted, ErrNotSupported or an error of the system.
func (k *Kernel) Read() (t Tables, err error) {
	for i, id := range families {
		if t[i], err = k.readTable(&nftables.Table{Name: TableName, Family: id}); err != nil {
			return Tables{}, fmt.Errorf("read table %s %s: %w", words(id).ip, TableName, explainRead(err))
		}
	}
	return t, nil
}

func (k *Kernel) readTable(table *nftables.Table) (t Table, err error) {
	if t.Chains, err = k.readChains(table); err != nil {
		return Table{}, fmt.Errorf("chains: %w", err)
	}
	if t.Sets, err = k.readSets(table); err != nil {
		return Table{}, fmt.Errorf("sets: %w", err)
	}
	objects, err := k.counterObjects(table)
	if err != nil {
		return Table{}, fmt.Errorf("counters: %w", err)
	}
	t.Counters = names(objects, func(o *nftables.NamedObj) string { return o.Name })
	slices.Sort(t.Counters)
	if t.Empty() {
		return t, nil // whether KubeVirt's share sleeps is none of our business
	}
	if t.Dormant, err = k.dormant(table); err != nil {
		return Table{}, fmt.Errorf("flags: %w", err)
	}
	return t, nil
}

// flagDormant is NFT_TABLE_F_DORMANT (linux/netfilter/nf_tables.h), in the byte order of the kernel's attribute, which the
// library leaves as it is.
var flagDormant = binaryutil.NativeEndian.Uint32(binaryutil.BigEndian.PutUint32(1))

// dormant reports whether the table's chains are not hooked in. Whoever adds the table wakes it up.
func (k *Kernel) dormant(table *nftables.Table) (bool, error) {
	have, err := k.nft.ListTableOfFamily(table.Name, table.Family)
	if gone(err) {
		return false, nil
	}
	return err == nil && have.Flags&flagDormant != 0, err
}

func (k *Kernel) readChains(table *nftables.Table) (out []Chain, err error) {
	chains, err := k.nft.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return nil, err
	}
	for _, c := range chains {
		if c.Table.Name == table.Name && strings.HasPrefix(c.Name, prefix) {
			out = append(out, newChain(c))
		}
	}
	if len(out) == 0 {
		return nil, nil
	}
	rules, err := k.rawRules(table)
	if err != nil {
		return nil, fmt.Errorf("rules: %w", err)
	}
	for i := range out {
		out[i].Rules = rules[out[i].Name]
	}
	slices.SortFunc(out, func(a, b Chain) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func newChain(c *nftables.Chain) Chain {
	chain := Chain{Name: c.Name, Type: c.Type}
	if c.Hooknum != nil {
		chain.Hook, chain.Priority = *c.Hooknum, *c.Priority
	}
	if c.Policy != nil {
		chain.Policy = *c.Policy
	}
	return chain
}

func (k *Kernel) readSets(table *nftables.Table) (out []Set, err error) {
	sets, err := k.nft.GetSets(table)
	if err != nil && !gone(err) {
		return nil, err
	}
	for _, s := range sets {
		if !strings.HasPrefix(s.Name, prefix) {
			continue
		}
		elements, err := k.nft.GetSetElements(s)
		if err != nil && !gone(err) {
			return nil, fmt.Errorf("elements of %s: %w", s.Name, err)
		}
		out = append(out, newSet(s, elements))
	}
	slices.SortFunc(out, func(a, b Set) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// newSet leaves out the element that nft, but not we, puts in front of the first interval: the end of an interval that
// would begin before all addresses.
func newSet(s *nftables.Set, elements []nftables.SetElement) Set {
	set := Set{Name: s.Name, Type: s.KeyType.Name, Interval: s.Interval}
	for _, e := range elements {
		if zero := strings.Trim(string(e.Key), "\x00") == ""; !zero || !e.IntervalEnd {
			set.Elements = append(set.Elements, Element{Key: string(e.Key), End: e.IntervalEnd, Last: string(e.KeyEnd)})
		}
	}
	slices.SortFunc(set.Elements, compareElements)
	return set
}

func (k *Kernel) counterObjects(table *nftables.Table) (out []*nftables.NamedObj, err error) {
	objects, err := k.nft.GetNamedObjects(table)
	if err != nil && !gone(err) {
		return nil, err
	}
	for _, o := range objects {
		named, ok := o.(*nftables.NamedObj)
		if ok && named.Type == nftables.ObjTypeCounter && strings.HasPrefix(named.Name, prefix) {
			out = append(out, named)
		}
	}
	return out, nil
}
