package admission

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	eventsv1 "k8s.io/api/events/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip/ipam/v1alpha1"
)

// eventsOn returns the events that floatip wrote about an object: one for each reason, however often it happened.
func (n *tenant) eventsOn(kind, name string) map[string]eventsv1.Event {
	n.t.Helper()
	var list eventsv1.EventList
	if err := n.admin.List(n.ctx, &list, client.InNamespace(n.ns)); err != nil {
		n.t.Fatal(err)
	}
	found := map[string]eventsv1.Event{}
	for _, event := range list.Items {
		if event.Regarding.Kind != kind || event.Regarding.Name != name || event.ReportingController != "floatip" {
			continue
		}
		if _, twice := found[event.Reason]; twice {
			n.t.Errorf("two events %s on %s %s", event.Reason, kind, name)
		}
		found[event.Reason] = event
	}
	return found
}

// awaitEvent waits until there is an event that says text.
func (n *tenant) awaitEvent(kind, name, reason, text string) {
	n.t.Helper()
	n.wait("event "+reason+" on "+kind+" "+name, func(context.Context) error {
		event, ok := n.eventsOn(kind, name)[reason]
		if !ok {
			return errors.New("there is none")
		}
		if !strings.Contains(event.Note, text) {
			return fmt.Errorf("it says %q, want %q", event.Note, text)
		}
		return nil
	})
}

// What happened is told on the VM, or in its namespace if there is no VM; once, however often it happens.
func events(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	unserved := w.tenant(t, 10, func(p *v1alpha1.FloatingIPPool) { p.Spec.AutoAssign = new(false) })
	vm := n.create("vm", nil)
	n.bound(vm)
	for range 3 {
		wantRefusal(t, "create", n.admin.Create(n.ctx, n.newVM("rival", request(n.address(1)))), "is held by")
		wantRefusal(t, "edit", n.patch("vm", `{"metadata":{"annotations":{"floatip.io/request":"`+n.address(9)+`"}}}`), "does not change")
		unserved.remove(unserved.create("vm", nil))
	}
	n.awaitEvent("VirtualMachine", "vm", "FloatingIPAllocated", n.address(1)+" of pool "+n.ns)
	n.awaitEvent("VirtualMachine", "vm", "FloatingIPRefused", "an address does not change with an edit")
	n.awaitEvent("Namespace", n.ns, "FloatingIPRefused", "VM rival: floatip: "+n.address(1)+" is held by VM "+n.ns+"/vm")
	unserved.awaitEvent("Namespace", unserved.ns, "FloatingIPUnserved", "VM vm: floatip: ")
	// A long text, as of somebody who writes a list into the wrong key, is cut: the API server would refuse the event.
	n.bound(n.create("wordy", nil))
	long := strings.Repeat("192.0.2.0/24 ", 200)
	wantRefusal(t, "a long list", n.patch("wordy", `{"metadata":{"annotations":{"floatip.io/allow":"`+long+`"}}}`), "floatip.io/allow")
	n.awaitEvent("VirtualMachine", "wordy", "FloatingIPRefused", "metadata.annotations[floatip.io/allow]")
	if all := n.eventsOn("VirtualMachine", "rival"); len(all) != 0 {
		t.Errorf("events on a VM that does not exist: %v", all)
	}
}
