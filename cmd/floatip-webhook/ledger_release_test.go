package main

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/webhook/admin"
)

// goneVM is a cluster in which the VM is, or is not, there any more.
type goneVM struct {
	admin.Cluster // nothing else is asked
	carrier, node string
	settled       []floatip.Owner
}

func (c *goneVM) Carrier(context.Context, floatip.Owner) (string, error) { return c.carrier, nil }

func (c *goneVM) Announcer(context.Context, floatip.Owner) (string, error) { return c.node, nil }

func (c *goneVM) Settle(_ context.Context, _ netip.Addr, owners []floatip.Owner) error {
	c.settled = append(c.settled, owners...)
	return nil
}

// The command gives back what a VM held, over the socket of a running webhook, once the VM is gone; and the reason that
// the person gave is in the history.
func TestLedgerRelease(t *testing.T) {
	path, _ := copiedLedger(t)
	ledger, err := ipam.Open(path, ipam.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer ledger.Close()
	cluster := &goneVM{carrier: "VM"}
	socket := filepath.Join(t.TempDir(), "run.sock")
	server := &admin.Server{Path: socket, Book: admin.Book{Ledger: ledger, Cluster: cluster, Pause: time.Millisecond}}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- server.Start(ctx) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	waitForSocket(t, socket, served)
	ask := func(args ...string) (code int, out, complaints string) {
		var o, c strings.Builder
		code = runLedger(append(args, "--socket", socket), strings.NewReader(""), &o, &c)
		return code, o.String(), c.String()
	}
	held := netip.MustParseAddr("192.0.2.1")
	code, out, complaints := ask("release", "192.0.2.1")
	if line, _ := ledger.Lookup(held); code != 1 || !strings.Contains(complaints, "delete the VM") || line.State != ipam.Bound {
		t.Fatalf("while the VM is there: code %d, %s\n%s%s", code, line.State, out, complaints)
	}
	cluster.carrier, cluster.node = "", "node1"
	code, _, complaints = ask("release", "192.0.2.1")
	if line, _ := ledger.Lookup(held); code != 1 || !strings.Contains(complaints, "--stopped-on node1") || line.State != ipam.Bound {
		t.Fatalf("while a node may answer: code %d, %s\n%s", code, line.State, complaints)
	}
	code, out, complaints = ask("release", "192.0.2.1", "--stopped-on", "node1", "--reason", "the rack burned", "-o", "json")
	var lines struct {
		Lines []struct{ Address netip.Addr }
	}
	if err := json.Unmarshal([]byte(out), &lines); code != 0 || err != nil || len(lines.Lines) != 1 || lines.Lines[0].Address != held {
		t.Fatalf("code %d, %v\n%s%s", code, err, out, complaints)
	}
	if line, _ := ledger.Lookup(held); line.State != ipam.Released {
		t.Errorf("after the release: %s", line.State)
	}
	if len(cluster.settled) != 1 || cluster.settled[0].UID != "uid-a" {
		t.Errorf("the objects were settled for %v", cluster.settled)
	}
	if code, out, complaints = ask("history", "192.0.2.1"); code != 0 || !strings.Contains(out, "the rack burned") {
		t.Errorf("code %d, the reason is not in the history:\n%s%s", code, out, complaints)
	}
	if code, _, complaints = ask("release", "192.0.2.1"); code != 1 || !strings.Contains(complaints, "not held") {
		t.Errorf("released again: code %d, %s", code, complaints)
	}
}

// waitForSocket returns when somebody answers there. The server moves the socket to its place when it listens.
func waitForSocket(t *testing.T, socket string, served <-chan error) {
	t.Helper()
	for {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", socket)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case err := <-served:
			t.Fatal(err)
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(time.Millisecond):
		}
	}
}
