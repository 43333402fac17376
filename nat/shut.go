package nat

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Shut drops whatever goes by the leg in the families of these addresses, until the next Apply. It is for addresses
// that are about to go: while their rules stand the guest's next packet would renew a flow that was forgotten, and once
// they are gone it would leave by eth0, still translated. Dropped packets make no conntrack entry. A family without our
// firewall chain is left alone. It fails like Apply.
func (k *Kernel) Shut(floating []netip.Addr) error {
	for _, address := range floating {
		f := familyOf(address)
		firewall := &nftables.Chain{Table: &nftables.Table{Name: TableName, Family: f.id}, Name: chainFirewall}
		for _, match := range []part{iifname(equal(link(LegInterface))), oifname(equal(link(LegInterface)))} {
			k.nft.InsertRule(&nftables.Rule{
				Table: firewall.Table, Chain: firewall, Exprs: append(match, verdict(expr.VerdictDrop)...),
			})
		}
		if err := k.nft.Flush(); err != nil && !gone(err) {
			return fmt.Errorf("shut the leg for %s: %w", address, explain(err))
		}
	}
	return nil
}

// Gone returns the addresses of t that want has not.
func (t Tables) Gone(want Tables) []netip.Addr {
	stays := want.Floating()
	return slices.DeleteFunc(t.Floating(), func(a netip.Addr) bool { return slices.Contains(stays, a) })
}
