package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

// copiedLedger is a file in which vms/a has had 192.0.2.1 for an hour, under the claim.
func copiedLedger(t *testing.T) (path string, claim floatip.Claim) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "ledger.db")
	ledger, err := ipam.Open(path, ipam.Options{Now: func() time.Time { return time.Now().Add(-time.Hour) }})
	if err != nil {
		t.Fatal(err)
	}
	pool, err := ipam.ParsePool(ipam.PoolText{Name: "lan", Addresses: []string{"192.0.2.0/29"}})
	if err != nil {
		t.Fatal(err)
	}
	pool.AutoAssign = true
	ledger.SetPools([]ipam.Pool{pool})
	claim = floatip.NewClaim()
	owner := floatip.Owner{Namespace: "vms", Name: "a", UID: "uid-a"}
	if _, err = ledger.Reserve(t.Context(), ipam.Request{Claim: claim, Namespace: "vms", Name: "a"}); err == nil {
		_, err = ledger.Commit(t.Context(), claim, owner, nil, ipam.Cause{User: "alice", RequestUID: "request-1"})
	}
	if err == nil {
		_, err = ledger.Bind(t.Context(), claim, owner, ipam.Cause{})
	}
	if err := errors.Join(err, ledger.Close()); err != nil {
		t.Fatal(err)
	}
	return path, claim
}

// What kubectl get vm,floatingips,floatingippools -A -o json writes.
func list(vmUID, claim, pool string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"List","items":[
	  {"apiVersion":"kubevirt.io/v1","kind":"VirtualMachine","metadata":{"namespace":"vms","name":"a","uid":%q,
	   "annotations":{"floatip.io/address":"192.0.2.1","floatip.io/claim":%q}},"spec":{}},
	  {"apiVersion":"floatip.io/v1alpha1","kind":"FloatingIP","metadata":{"name":"192.0.2.1"},
	   "spec":{"address":"192.0.2.1","pool":"lan","vm":{"namespace":"vms","name":"a","uid":%q}}},
	  {"apiVersion":"floatip.io/v1alpha1","kind":"FloatingIPPool","metadata":{"name":"lan"},"spec":{"addresses":[%q]}}]}`,
		vmUID, claim, vmUID, pool)
}

// The commands as a person types them, on a copied file.
func TestLedgerCommands(t *testing.T) {
	path, claim := copiedLedger(t)
	agrees := list("uid-a", claim.String(), "192.0.2.0/29")
	for _, tc := range []struct {
		name, args, stdin string
		code              int
		out, complaint    string
	}{
		{"check", "check", "", 0, "1 held, 0 released, 2 events: clean", ""},
		{"check as JSON", "check -o json", "", 0, `"held": 1`, ""},
		{"check with VMs", "check --vms -", agrees, 0, "clean", ""},
		{"check with other VMs", "check --vms -", list("uid-b", claim.String(), "192.0.2.0/29"), 1, "uid-b", "the check found 2 problems"},
		{"check with other pools", "check --vms -", list("uid-a", claim.String(), "198.51.100.0/24"), 1, "lies in no pool", "1 problems"},
		{"check without VMs", "check --vms -", `{"items":[]}`, 1, "", "no VirtualMachine among 0 items"},
		{"check with nonsense", "check --vms -", "apiVersion: v1", 1, "", "not a list in JSON"},
		{"list", "list", "", 0, "192.0.2.1", ""},
		{"list, nothing after it", "list --after 192.0.2.1 -o json", "", 0, `"lines": []`, ""},
		{"history, flags behind", "history 192.0.2.1 --since 2h", "", 0, "alice", ""},
		{"history, flags before", "--since 30m history 192.0.2.1 -o json", "", 0, `"events": []`, ""},
		{"history of a VM", "history --vm vms/a", "", 0, "request-1", ""},
		{"history until", "history --until 2h -o json", "", 0, `"events": []`, ""},
		{"disputes", "disputes", "", 0, "no address is disputed", ""},
		{"resolve a copy", "resolve 192.0.2.1 --keep uid-a", "", 1, "", "a copied ledger is not changed"},
		{"release a copy", "release 192.0.2.1", "", 1, "", "a copied ledger is not changed"},
		{"nothing", "", "", 2, "", "name a command"},
		{"unknown", "lost", "", 2, "", `no command "lost"`},
		{"no address", "release", "", 2, "", "release needs an address"},
		{"no UID", "resolve 192.0.2.1", "", 2, "", "resolve needs --keep"},
		{"bad address", "history 192.0.2.1/24", "", 2, "", "192.0.2.1"},
		{"too much", "check 192.0.2.1", "", 2, "", "too much"},
		{"bad VM", "history --vm a", "", 2, "", "--vm NAMESPACE/NAME"},
		{"bad time", "history --since yesterday", "", 2, "", "neither a time"},
		{"bad output", "list -o xml", "", 2, "", "there are text and json"},
		{"VMs with another command", "list --vms -", "", 2, "", "--vms does not go with list"},
		{"flag of another command", "list --namespace vms", "", 2, "", "--namespace does not go with list"},
		{"flags of another command", "check --keep uid-a --reason x", "", 2, "", "--reason does not go with check"},
		{"history of some days", "history --since 7d --until 0s", "", 0, "request-1", ""},
		{"history from a day on", "history --since 2020-01-02", "", 0, "request-1", ""},
		{"history backwards", "history --since 1h --until 2h", "", 2, "", "--until 2h is not after --since 1h"},
		{"time to come", "history --since -24h", "", 2, "", "how long ago"},
		{"too many", "list --limit 100000", "", 1, "", "at most 5000"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out, complaints strings.Builder
			args := append([]string{"--file", path}, strings.Fields(tc.args)...)
			code := runLedger(args, strings.NewReader(tc.stdin), &out, &complaints)
			if code != tc.code || !strings.Contains(out.String(), tc.out) || !strings.Contains(complaints.String(), tc.complaint) {
				t.Errorf("code %d, want %d and %q and %q; have\n%s\n%s", code, tc.code, tc.out, tc.complaint, out.String(), complaints.String())
			}
		})
	}
}

// Without a webhook and without a file, the error says where to go.
func TestLedgerWithoutWebhook(t *testing.T) {
	var out, complaints strings.Builder
	code := runLedger([]string{"list", "--socket", filepath.Join(t.TempDir(), "none")}, nil, &out, &complaints)
	if code != 1 || !strings.Contains(complaints.String(), "kubectl -n floatip-system exec deploy/floatip-webhook") {
		t.Errorf("code %d: %s", code, complaints.String())
	}
}

// The process ends at once, with what to do, when it cannot have its file to itself or cannot write it.
func TestStartRefused(t *testing.T) {
	held, _ := copiedLedger(t)
	ledger, err := ipam.Open(held, ipam.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer ledger.Close()
	damaged := filepath.Join(t.TempDir(), "damaged.db")
	if err := os.WriteFile(damaged, []byte("not a ledger"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{held: ipam.ErrLocked, damaged: ipam.ErrDamaged, "/nowhere/ledger.db": fs.ErrNotExist} {
		c := defaults()
		c.ledger = path
		err := serve(t.Context(), c, nil, logr.Discard())
		if err == nil || !strings.Contains(err.Error(), "open ledger "+path) {
			t.Errorf("%s: %v", path, err)
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	if raw, err := os.ReadFile(damaged); err != nil || string(raw) != "not a ledger" {
		t.Errorf("the damaged file was touched: %q, %v", raw, err)
	}
}
