package nat

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Shut drops whatever comes and goes under these addresses, until the next Apply. It is for addresses
// that are about to go: while their rules stand the guest's next packet would renew a flow that was forgotten, and once
// they are gone it would leave by eth0, still translated. Dropped packets make no conntrack entry. A family without our
// chains is left alone, and so is one that have, what the caller has just read, shows to be shut. It fails like Apply.
func (k *Kernel) Shut(have Tables, floating []netip.Addr) error {
	for _, address := range floating {
		f := familyOf(address)
		table := &nftables.Table{Name: TableName, Family: f.id}
		for _, c := range have.of(f).Chains {
			if c.Name != chainIn && c.Name != chainOut || c.shut(f.id) {
				continue
			}
			k.nft.InsertRule(&nftables.Rule{
				Table: table, Chain: &nftables.Chain{Table: table, Name: c.Name}, Exprs: verdict(expr.VerdictDrop),
			})
		}
		if err := k.nft.Flush(); err != nil && !gone(err) {
			return fmt.Errorf("shut %s: %w", address, explain(err))
		}
	}
	return nil
}

// of returns the table of a family.
func (t Tables) of(f family) Table { return t[slices.Index(families[:], f.id)] }

// shut reports whether Shut was here.
func (c Chain) shut(id nftables.TableFamily) bool {
	return len(c.Rules) > 0 && c.Rules[0].text(id) == RuleText(id, verdict(expr.VerdictDrop))
}

// Gone returns the addresses of t that want has not.
func (t Tables) Gone(want Tables) []netip.Addr {
	stays := want.Floating()
	return slices.DeleteFunc(t.Floating(), func(a netip.Addr) bool { return slices.Contains(stays, a) })
}
