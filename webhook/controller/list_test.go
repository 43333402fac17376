package controller

import (
	"bytes"
	"path/filepath"
	"testing"

	"floatip.io/floatip/ipam"
)

// Any bytes as a list of the cluster: it is refused, or every address in it is one as the ledger writes it.
func FuzzReadList(f *testing.F) {
	const claim = "01a226168dd7039df1b39b189b67ad32"
	vm := `{"kind":"VirtualMachine","metadata":{"namespace":"vms","name":"a","uid":"u","annotations":{"floatip.io/address":"192.0.2.1,2001:db8::1","floatip.io/claim":"` + claim + `"}}}`
	for _, items := range []string{
		vm, vm + `,{"kind":"FloatingIP","spec":{"address":"::ffff:192.0.2.1","vm":{"uid":"u"}}}`,
		vm + `,{"kind":"FloatingIPPool","metadata":{"name":"p"},"spec":{"addresses":["192.0.2.0/24"],"gateways":["192.0.2.1/24"]}}`,
		`{"kind":7}`, `{"kind":"FloatingIP","spec":[]}`, ``,
	} {
		f.Add([]byte(`{"items":[` + items + `]}`))
	}
	ledger, err := ipam.Open(filepath.Join(f.TempDir(), "ledger.db"), ipam.Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { ledger.Close() })
	f.Fuzz(func(t *testing.T, raw []byte) {
		against, err := ReadList(bytes.NewReader(raw), ledger)
		if err != nil {
			return
		}
		for _, s := range against.Seen {
			if again, err := ipam.ParseAddress(s.Address.String()); err != nil || again != s.Address || s.Owner.UID == "" {
				t.Errorf("%q: seen %+v, %v", raw, s, err)
			}
		}
	})
}
