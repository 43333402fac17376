package admission

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/webhook/admin"
)

// etcdAnswerWithheld: the API server gives a create up, and says so, while etcd has stored it. The VM holds its address,
// once, also after the promise got old while nobody could tell whether there is such a VM.
func etcdAnswerWithheld(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	n.bound(n.create("first", nil)) // what admission reads is cached now
	n.settledVM("first")
	set, err := kubernetes.NewForConfig(w.cluster.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(n.newVM("vm", request(n.address(5))))
	if err != nil {
		t.Fatal(err)
	}
	release := w.etcd.hold()
	defer release()
	err = set.Discovery().RESTClient().Post().AbsPath("/apis/kubevirt.io/v1/namespaces/"+n.ns+"/virtualmachines").
		SetHeader("Content-Type", "application/json").Param("timeout", "3s").Body(body).Do(n.ctx).Error()
	if !apierrors.IsTimeout(err) {
		t.Fatalf("create while etcd does not answer: %v, want a timeout", err)
	}
	pending := n.lines(ipam.Pending)
	if len(pending) != 1 || pending[0].Address.String() != n.address(5) {
		t.Fatalf("the ledger has %v, want %s Pending", pending, n.address(5))
	}
	for time.Since(pending[0].Since) < pendingAge+pendingAge/2 {
		if now := n.lines(ipam.Pending); len(now) != 1 {
			t.Fatalf("nobody can tell whether the VM is stored, and the ledger has %v", now)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-n.ctx.Done():
			t.Fatal(n.ctx.Err())
		}
	}
	release()
	vm := new(kubevirtv1.VirtualMachine)
	n.wait("the VM", func(ctx context.Context) error {
		return n.admin.Get(ctx, client.ObjectKey{Namespace: n.ns, Name: "vm"}, vm)
	})
	if got := n.bound(vm); got != n.address(5) || string(vm.UID) != pending[0].VM.UID {
		t.Errorf("the VM holds %s with UID %s, the promise was %v", got, vm.UID, pending[0])
	}
	if err := n.admin.Create(n.ctx, n.newVM("vm", request(n.address(5)))); !apierrors.IsAlreadyExists(err) {
		t.Errorf("whoever tries again: %v, want that it exists", err)
	}
	if lines := n.lines(ipam.Pending, ipam.Bound); len(lines) != 2 {
		t.Errorf("two VMs, and the ledger has %v", lines)
	}
}

// webhookDown: without floatip nobody is affected who did not ask, and what is there can be changed and deleted.
func webhookDown(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	open := n.ns + "-open"
	n.addNamespace(open, false)
	held, going := n.create("held", nil), n.create("going", nil)
	address := n.bound(held)
	n.bound(going)
	if err := w.stopWebhook(n.ctx); err != nil {
		t.Fatal(err)
	}
	elsewhere := n.newVM("vm", nil)
	elsewhere.Namespace = open
	if err := n.admin.Create(n.ctx, elsewhere); err != nil {
		t.Errorf("a VM of a namespace that did not opt in: %v", err)
	}
	n.create("opted-out", map[string]string{floatip.LabelEnabled: "false"})
	err := n.admin.Create(n.ctx, n.newVM("refused", nil))
	wantRefusal(t, "a VM that asks", err, `"vm-create.floatip.io"`, "floatip-webhook.floatip-system.svc")
	wantRefusal(t, "a change of a pool", n.setPool(n.ns, map[string]any{"drain": true}), `"pool.floatip.io"`)

	for what, do := range map[string]func() error{
		"a label":      func() error { return n.patch("held", `{"metadata":{"labels":{"a":"b"}}}`) },
		"a finalizer":  func() error { return n.patch("held", `{"metadata":{"finalizers":["example.com/one"]}}`) },
		"the template": func() error { return n.patch("held", `{"spec":{"template":{"metadata":{"annotations":{"a":"b"}}}}}`) },
		"no finalizer": func() error { return n.patch("held", `{"metadata":{"finalizers":null}}`) },
		"the status": func() error {
			return n.admin.Status().Patch(n.ctx, held.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(`{"status":{"created":false}}`)))
		},
	} {
		if err := do(); err != nil {
			t.Errorf("change %s of a VM that holds an address: %v", what, err)
		}
	}
	err = n.patch("held", `{"metadata":{"annotations":{"floatip.io/address":"`+n.address(9)+`"}}}`)
	wantRefusal(t, "a change of floatip's key", err, "metadata.annotations[floatip.io/address] is written by floatip only")
	err = n.patch("held", `{"metadata":{"annotations":{"floatip.io/claim":null}}}`)
	wantRefusal(t, "a removal of floatip's key", err, "metadata.annotations[floatip.io/claim] is written by floatip only")
	n.remove(going)

	if err := w.startWebhook(n.ctx); err != nil {
		t.Fatal(err)
	}
	if got := n.bound(n.get("held")); got != address {
		t.Errorf("the VM had %s, has %s", address, got)
	}
	n.free(going.Annotations[floatip.AnnotationAddress])
	n.bound(n.create("refused", nil))
}

func (n *tenant) patch(vm, merge string) error {
	return n.admin.Patch(n.ctx, n.newVM(vm, nil), client.RawPatch("application/merge-patch+json", []byte(merge)))
}

// webhookSlow: slow answers delay a create; an answer that is too late is a refusal that costs nobody the address, also
// if the ledger had it already.
func webhookSlow(t *testing.T, w *world) {
	n := w.tenant(t, 10, noRest)
	w.hook.slow(500 * time.Millisecond)
	begun := time.Now()
	n.bound(n.create("slow", nil))
	t.Logf("with answers that are late by 0.5 s a create took %s", time.Since(begun).Round(100*time.Millisecond))
	w.hook.slow(0)

	// After the mutating call, the validating one is answered too late.
	var release func()
	n.mutating(func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		if r.Name == "late" && release == nil {
			release = w.hook.hold()
		}
		return allowed()
	})
	err := n.admin.Create(n.ctx, n.newVM("late", request(n.address(5))))
	release()
	wantRefusal(t, "a commit whose answer is too late", err, `"vm-commit.floatip.io"`, "deadline exceeded")
	tried := func(l admin.Line) bool { return l.Address.String() == n.address(5) && l.VM.Name == "late" }
	if lines := n.lines(); !slices.ContainsFunc(lines, tried) { // Pending, or freed already
		t.Errorf("the ledger has %v, want %s of VM late", lines, n.address(5))
	}
	n.free(n.address(5))
	vm := n.create("late", request(n.address(5)))
	n.bound(vm)
}

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
	direct := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return process.Dialer(w.netns)(ctx, network, fmt.Sprintf("127.0.0.1:%d", webhookPort))
		},
	}}
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
