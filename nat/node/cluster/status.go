package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/nat/node"
)

const (
	// writeAgain is the pause after the API server refused, or did not answer.
	writeAgain = time.Second
	// lookAgain is the pause after the store had not yet what was written last.
	lookAgain = 100 * time.Millisecond
)

// errBehind says that the store has an older version of the object than the API server. The watch will bring the newer one,
// but the latest report is not made again for it: what has changed in it since would stay unwritten.
var errBehind = errors.New("the watch has not brought the object's newest version yet")

// mailbox holds the latest report. A newer one replaces an older one: each says all.
type mailbox struct {
	mu     *sync.Mutex // guards latest
	latest *node.Report
	poke   chan struct{} // capacity 1
}

func newMailbox() mailbox { return mailbox{mu: new(sync.Mutex), poke: make(chan struct{}, 1)} }

// Report implements node.Sink.
func (c *Cluster) Report(r node.Report) {
	c.reports.mu.Lock()
	c.reports.latest = &r
	c.reports.mu.Unlock()
	select {
	case c.reports.poke <- struct{}{}:
	default:
	}
}

// write brings reports to the API server until ctx is done.
func (c *Cluster) write(ctx context.Context) {
	written, missing := map[string]string{}, missing{}
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.reports.poke:
		case <-again:
		}
		again = nil
		c.reports.mu.Lock()
		r := c.reports.latest
		c.reports.mu.Unlock()
		err := c.writeReport(ctx, *r, written, missing)
		switch {
		case err == nil || ctx.Err() != nil:
		case err == errBehind:
			again = time.After(lookAgain)
		default:
			c.log.Info("could not write all of the status, trying again", "reason", err)
			again = time.After(writeAgain)
		}
	}
}

// writeReport writes what differs from the objects in the store. written remembers which version of an object was
// written over, so that the same is not tried again before the watch has brought the result. The error is errBehind if
// nothing but that is in the way.
func (c *Cluster) writeReport(ctx context.Context, r node.Report, written map[string]string, gone missing) error {
	var errs []error
	for _, a := range slices.SortedFunc(keys(r.Statuses), netip.Addr.Compare) {
		s := r.Statuses[a]
		if s.Here && !s.Resuming {
			errs = append(errs, c.writeStatus(ctx, a, written, func(f *v1alpha1.FloatingIP) v1alpha1.FloatingIPStatus {
				return statusOf(f, c.node, s, metav1.Now())
			}))
		}
	}
	for _, a := range r.Left {
		errs = append(errs, c.writeStatus(ctx, a, written, func(f *v1alpha1.FloatingIP) v1alpha1.FloatingIPStatus {
			return leftStatus(f, c.node, metav1.Now())
		}))
	}
	behind := slices.Contains(errs, errBehind)
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == errBehind })
	if err := errors.Join(append(errs, c.writeNode(ctx, r, gone))...); err != nil || !behind {
		return err
	}
	return errBehind
}

func keys[V any](m map[netip.Addr]V) func(func(netip.Addr) bool) {
	return func(yield func(netip.Addr) bool) {
		for a := range m {
			if !yield(a) {
				return
			}
		}
	}
}

func (c *Cluster) writeStatus(ctx context.Context, a netip.Addr, written map[string]string,
	change func(*v1alpha1.FloatingIP) v1alpha1.FloatingIPStatus) error {
	o, exists, err := c.addresses.store.GetByKey(v1alpha1.Name(a))
	if err != nil || !exists {
		return err
	}
	f := o.(*v1alpha1.FloatingIP)
	status := change(f)
	if sameStatus(f.Status, status) {
		return nil
	}
	if written[f.Name] == f.ResourceVersion {
		return errBehind
	}
	patch, err := json.Marshal(statusPatch(f, status))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var result metav1.PartialObjectMetadata
	raw, err := c.floatip.Patch(types.MergePatchType).Resource("floatingips").Name(f.Name).SubResource("status").
		Body(patch).Do(ctx).Raw()
	if err == nil {
		err = json.Unmarshal(raw, &result)
	}
	switch {
	case apierrors.IsConflict(err):
		return errBehind
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("status of %s: %w", f.Name, err)
	}
	if result.ResourceVersion != f.ResourceVersion { // else nothing was changed, and the watch has nothing to bring
		written[f.Name] = f.ResourceVersion
	}
	if f.Status.Phase != status.Phase {
		c.log.Info("wrote the phase", "address", a, "phase", status.Phase, "pod", status.Pod)
	}
	return nil
}

// statusPatch is the merge patch (RFC 7386) that makes the status of f this one. What is absent in a merge patch stays, so
// fields that may be left out are null there. The resource version makes it a compare-and-set: the status may name another
// node by now.
func statusPatch(f *v1alpha1.FloatingIP, s v1alpha1.FloatingIPStatus) map[string]any {
	var move map[string]any
	if m := s.LastMove; m != nil {
		move = map[string]any{
			"from": m.From, "to": m.To, "time": m.Time, "trigger": m.Trigger, "connections": m.Connections,
			"stallMilliseconds": m.StallMilliseconds,
		}
	}
	return map[string]any{
		"metadata": map[string]any{"resourceVersion": f.ResourceVersion},
		"status": map[string]any{
			"phase": s.Phase, "node": s.Node, "pod": s.Pod, "conditions": s.Conditions, "lastMove": move,
		},
	}
}

// sameStatus compares all but the times of transition, which change only together with something else.
func sameStatus(a, b v1alpha1.FloatingIPStatus) bool {
	return a.Phase == b.Phase && a.Node == b.Node && a.Pod == b.Pod && equality.Semantic.DeepEqual(a.LastMove, b.LastMove) &&
		slices.EqualFunc(a.Conditions, b.Conditions, func(x, y metav1.Condition) bool {
			return x.Type == y.Type && x.Status == y.Status && x.Reason == y.Reason && x.Message == y.Message
		})
}

// statusOf is the status of f while its pod is on this node. Conditions of others stay. It is f's own where the node that
// the guest goes to has said that the guest is there: KubeVirt says so later, and what this node found out before is over.
func statusOf(f *v1alpha1.FloatingIP, nodeName string, s node.Status, now metav1.Time) v1alpha1.FloatingIPStatus {
	out := *f.Status.DeepCopy()
	if m := out.LastMove; m != nil && m.From == nodeName && m.To == out.Node && out.Node == s.To {
		return out
	}
	out.Node, out.Pod, out.Phase = nodeName, s.Pod, v1alpha1.PhaseBound
	if out.LastMove = lastMove(f.Status.LastMove, nodeName); s.Move != nil {
		out.LastMove = moveOf(*s.Move, nodeName)
	}
	ready := s.Ready()
	if ready.True {
		out.Phase = v1alpha1.PhaseReady
	}
	for _, c := range []struct {
		kind string
		node.Condition
	}{
		{v1alpha1.ConditionConflictFree, s.ConflictFree},
		{v1alpha1.ConditionNATReady, s.NATReady}, {v1alpha1.ConditionLegReady, s.LegReady},
		{v1alpha1.ConditionAnnounced, s.Announced}, {v1alpha1.ConditionGuestUp, s.GuestUp},
		{v1alpha1.ConditionReady, ready},
	} {
		setCondition(&out, f.Generation, c.kind, c.Condition, now)
	}
	return out
}

// lastMove is what an earlier agent of this node wrote.
func lastMove(m *v1alpha1.Move, nodeName string) *v1alpha1.Move {
	if m == nil || m.To != nodeName {
		return nil
	}
	return m.DeepCopy()
}

func moveOf(m node.Move, nodeName string) *v1alpha1.Move {
	out := &v1alpha1.Move{
		From: m.From, To: nodeName, Trigger: string(m.Trigger), Connections: int32(m.Flows),
		Time: metav1.NewTime(m.At.Truncate(time.Second)), // as the API server keeps it
	}
	if m.Stall != nil {
		ms := m.Stall.Milliseconds()
		out.StallMilliseconds = &ms
	}
	return out
}

// leftStatus is the status of f after its pod left this node, or f's own where it names another node by now.
func leftStatus(f *v1alpha1.FloatingIP, nodeName string, now metav1.Time) v1alpha1.FloatingIPStatus {
	out := *f.Status.DeepCopy()
	if out.Node != nodeName {
		return out
	}
	out.Node, out.Pod, out.LastMove = "", "", nil
	if out.Phase == v1alpha1.PhaseReady {
		out.Phase = v1alpha1.PhaseBound
	}
	stopped := node.Condition{Reason: "NotRunning", Message: "no pod of the VirtualMachine runs with this address"}
	for _, kind := range []string{
		v1alpha1.ConditionNATReady, v1alpha1.ConditionLegReady, v1alpha1.ConditionAnnounced, v1alpha1.ConditionGuestUp,
		v1alpha1.ConditionReady,
	} {
		setCondition(&out, f.Generation, kind, stopped, now)
	}
	if meta.IsStatusConditionFalse(out.Conditions, v1alpha1.ConditionConflictFree) {
		// One that is True stays: the guest may be on its way to another node, which must not ask the LAN about it.
		meta.SetStatusCondition(&out.Conditions, metav1.Condition{
			Type: v1alpha1.ConditionConflictFree, Status: metav1.ConditionUnknown, Reason: stopped.Reason,
			ObservedGeneration: f.Generation, Message: stopped.Message, LastTransitionTime: now,
		})
	}
	return out
}

// maxMessage bounds a condition's message; the CRD allows 32 KiB, a person reads less.
const maxMessage = 1024

func setCondition(s *v1alpha1.FloatingIPStatus, generation int64, kind string, c node.Condition, now metav1.Time) {
	status := metav1.ConditionFalse
	if c.True {
		status = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&s.Conditions, metav1.Condition{
		Type: kind, Status: status, Reason: cmp.Or(c.Reason, "Unknown"), ObservedGeneration: generation,
		Message: c.Message[:min(len(c.Message), maxMessage)], LastTransitionTime: now,
	})
}
