package admission

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"floatip.io/floatip/ipam"
	"floatip.io/floatip/test/rig/process"
)

// webhookRestarting: who applies over and over while floatip is killed again and again gets each VM with one address.
func webhookRestarting(t *testing.T, w *world) {
	n := w.tenant(t, 60)
	const count = 24
	var all sync.WaitGroup
	done := make(chan struct{})
	for i := range 3 {
		all.Go(func() {
			for j := i; j < count; j += 3 {
				name := fmt.Sprintf("vm-%d", j)
				err := process.Wait(n.ctx, nil, name, func(ctx context.Context) error {
					err := n.admin.Create(ctx, n.newVM(name, nil))
					if apierrors.IsAlreadyExists(err) {
						return nil
					}
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() { all.Wait(); close(done) }()
	kills := 0
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(300 * time.Millisecond):
			if kills == 3 {
				continue
			}
			kills++
			if err := syscall.Kill(w.webhook.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			<-w.webhook.Done()
			if err := w.startWebhook(n.ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	for j := range count {
		n.bound(n.get(fmt.Sprintf("vm-%d", j)))
	}
	n.wait("no promise to be left", func(context.Context) error {
		if held := n.lines(ipam.Pending, ipam.Bound); len(held) != count {
			return fmt.Errorf("%d VMs, and the ledger has %d addresses", count, len(held))
		}
		return nil
	})
}

// webhookStarting: while floatip reads the cluster it says "try again", and the API server does: a create that comes
// too early waits and succeeds.
func webhookStarting(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	if err := w.stopWebhook(n.ctx); err != nil {
		t.Fatal(err)
	}
	w.api.slow(300 * time.Millisecond) // of all that floatip reads
	defer w.api.slow(0)
	if err := w.launchWebhook(n.ctx); err != nil {
		t.Fatal(err)
	}
	_, cert, key := w.cluster.WebhookClient()
	direct := w.direct(t, cert, key)
	n.wait("floatip to answer", func(ctx context.Context) error {
		answer, err := direct.Post("https://floatip/mutate-vm-create", "application/json", bytes.NewReader([]byte("{}")))
		if err != nil {
			return err
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusServiceUnavailable || answer.Header.Get("Retry-After") != "1" {
			t.Errorf("floatip, while it starts: %s, Retry-After %q", answer.Status, answer.Header.Get("Retry-After"))
		}
		return nil
	})
	begun := time.Now()
	vm := n.newVM("early", nil)
	if err := n.admin.Create(n.ctx, vm); err != nil {
		t.Fatalf("a create while floatip starts: %v", err)
	}
	t.Logf("a create while floatip starts took %s", time.Since(begun).Round(100*time.Millisecond))
	w.api.slow(0)
	n.bound(vm)
}
