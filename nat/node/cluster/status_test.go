package cluster

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/nat/node"
)

var (
	then = metav1.NewTime(time.Unix(1000, 0))
	now  = metav1.NewTime(time.Unix(2000, 0))
	good = node.Condition{True: true, Reason: "Fine", Message: "fine"}
)

func condition(kind string, status metav1.ConditionStatus, reason, message string, at metav1.Time) metav1.Condition {
	return metav1.Condition{
		Type: kind, Status: status, Reason: reason, Message: message, LastTransitionTime: at, ObservedGeneration: 3,
	}
}

func TestStatus(t *testing.T) {
	foreign := condition("Disputed", metav1.ConditionFalse, "Settled", "one VM has it", then)
	f := floatingIP(func(f *v1alpha1.FloatingIP) { f.Status.Conditions = []metav1.Condition{foreign} })
	waiting := node.Condition{Reason: "WaitingForSidecar", Message: "not yet"}
	got := statusOf(f, "n1", node.Status{Pod: "p", Here: true, NATReady: waiting, LegReady: good, Announced: good, GuestUp: good, ConflictFree: good}, now)
	want := v1alpha1.FloatingIPStatus{
		Phase: v1alpha1.PhaseBound, Node: "n1", Pod: "p", Conditions: []metav1.Condition{
			foreign,
			condition("ConflictFree", metav1.ConditionTrue, "Fine", "fine", now),
			condition("NATReady", metav1.ConditionFalse, "WaitingForSidecar", "not yet", now),
			condition("LegReady", metav1.ConditionTrue, "Fine", "fine", now),
			condition("Announced", metav1.ConditionTrue, "Fine", "fine", now),
			condition("GuestUp", metav1.ConditionTrue, "Fine", "fine", now),
			condition("Ready", metav1.ConditionFalse, "WaitingForSidecar", "not yet", now),
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	f.Status = got
	got = statusOf(f, "n1", node.Status{Pod: "p", Here: true, NATReady: good, LegReady: good, Announced: good, GuestUp: good, ConflictFree: good}, now)
	if got.Phase != v1alpha1.PhaseReady {
		t.Errorf("phase is %s although all is fine, want Ready", got.Phase)
	}
	f.Status = got
	if again := statusOf(f, "n1", node.Status{Pod: "p", Here: true, NATReady: good, LegReady: good, Announced: good, GuestUp: good, ConflictFree: good}, then); !sameStatus(got, again) {
		t.Errorf("the same status twice is a change: %s", cmp.Diff(got, again))
	}
}

// TestStatusPatch: a status becomes just the one that is written, whatever it was: a move of which little is known takes nothing
// over from the one before.
func TestStatusPatch(t *testing.T) {
	stall := int64(155)
	moves := []*v1alpha1.Move{
		nil, {From: "n2", To: "n1", Time: then, Trigger: "FirstFrame", Connections: 6, StallMilliseconds: &stall},
		{From: "n1", To: "n2", Time: now, Trigger: "KubeVirt"},
	}
	for _, before := range moves {
		for _, after := range moves {
			f := floatingIP(nil)
			f.ResourceVersion = "7"
			f.Status = v1alpha1.FloatingIPStatus{Phase: v1alpha1.PhaseReady, Node: "n1", Pod: "p", LastMove: before}
			want := v1alpha1.FloatingIPStatus{Phase: v1alpha1.PhaseBound, LastMove: after}
			patch := decoded(t, statusPatch(f, want))
			if version := patch["metadata"].(map[string]any)["resourceVersion"]; version != "7" {
				t.Errorf("the patch is for version %v, want 7", version)
			}
			raw, err := json.Marshal(merged(decoded(t, f.Status), patch["status"].(map[string]any)))
			if err != nil {
				t.Fatal(err)
			}
			var got v1alpha1.FloatingIPStatus
			if err := json.Unmarshal(raw, &got); err != nil {
				t.Fatal(err)
			}
			if !sameStatus(got, want) {
				t.Errorf("the move %+v became %+v, want %+v", before, got.LastMove, after)
			}
		}
	}
}

func decoded(t *testing.T, v any) (out map[string]any) {
	t.Helper()
	raw, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// merged is what the API server makes of a merge patch (RFC 7386 section 2).
func merged(target, patch map[string]any) map[string]any {
	if target == nil {
		target = map[string]any{}
	}
	for key, value := range patch {
		switch value := value.(type) {
		case nil:
			delete(target, key)
		case map[string]any:
			below, _ := target[key].(map[string]any)
			target[key] = merged(below, value)
		default:
			target[key] = value
		}
	}
	return target
}

// TestLeft: another node may have taken over by the time this one says that it is done.
func TestLeft(t *testing.T) {
	f := floatingIP(nil)
	f.Status = statusOf(f, "n1", node.Status{Pod: "p", Here: true, NATReady: good, LegReady: good, Announced: good, GuestUp: good, ConflictFree: good}, then)
	got := leftStatus(f, "n1", now)
	if got.Phase != v1alpha1.PhaseBound || got.Node != "" || got.Pod != "" {
		t.Errorf("have phase %s, node %q, pod %q; want Bound and neither", got.Phase, got.Node, got.Pod)
	}
	for _, c := range got.Conditions {
		if c.Type == v1alpha1.ConditionConflictFree {
			if c.Status != metav1.ConditionTrue {
				t.Errorf("condition %s is %s: the node that the guest moves to would ask the LAN", c.Type, c.Status)
			}
			continue
		}
		if c.Status != metav1.ConditionFalse || c.Reason != "NotRunning" {
			t.Errorf("condition %s is %s (%s), want False (NotRunning)", c.Type, c.Status, c.Reason)
		}
	}
	conflict := f.DeepCopy()
	meta.SetStatusCondition(&conflict.Status.Conditions, condition("ConflictFree", metav1.ConditionFalse, "AddressTaken", "", then))
	if s := leftStatus(conflict, "n1", now); !meta.IsStatusConditionPresentAndEqual(s.Conditions, "ConflictFree", metav1.ConditionUnknown) {
		t.Errorf("a conflict stays when nobody looks any more: %+v", s.Conditions)
	}
	if taken := leftStatus(f, "n2", now); !sameStatus(f.Status, taken) {
		t.Errorf("n2 changed the status that names n1: %s", cmp.Diff(f.Status, taken))
	}
}

func TestLabelChanges(t *testing.T) {
	have := map[string]string{"zone": "a", "pool.floatip.io/lan": "true", "pool.floatip.io/gone": "true", "pool.floatip.io/down": "true"}
	got := labelChanges(have, map[string]bool{"lan": true, "new": true, "down": false})
	want := map[string]any{"pool.floatip.io/new": "true", "pool.floatip.io/gone": nil, "pool.floatip.io/down": nil}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
}

// TestLastMove: the move that brought a VM here stays known to a later agent of the node, until the VM is elsewhere.
func TestLastMove(t *testing.T) {
	f := floatingIP(nil)
	stall := 120 * time.Millisecond
	s := node.Status{Pod: "p", Here: true, Move: &node.Move{
		From: "n2", At: time.Unix(1500, 7), Trigger: node.FirstFrame, Stall: &stall, Flows: 3,
	}}
	milliseconds := int64(120)
	want := &v1alpha1.Move{
		From: "n2", To: "n1", Time: metav1.NewTime(time.Unix(1500, 0)), Trigger: "FirstFrame",
		StallMilliseconds: &milliseconds, Connections: 3,
	}
	f.Status = statusOf(f, "n1", s, now)
	if diff := cmp.Diff(want, f.Status.LastMove); diff != "" {
		t.Errorf("last move (-want +got):\n%s", diff)
	}
	s.Move = nil
	if again := statusOf(f, "n1", s, now); !sameStatus(f.Status, again) {
		t.Errorf("an agent that does not remember it changed the status: %s", cmp.Diff(f.Status, again))
	}
	if elsewhere := statusOf(f, "n3", s, now); elsewhere.LastMove != nil {
		t.Errorf("the VM was started on n3, whose status tells of the move %+v", elsewhere.LastMove)
	}
	if gone := leftStatus(f, "n1", now); gone.LastMove != nil {
		t.Errorf("the VM runs nowhere, the status tells of the move %+v", gone.LastMove)
	}
}

// TestOldNodeYields: what the new node says of a guest that has come stays, although KubeVirt still has it on the old one. The
// old one says how it is again when the migration was given up, or goes somewhere else.
func TestOldNodeYields(t *testing.T) {
	s := node.Status{Pod: "old", Here: true, To: "n2", NATReady: good, LegReady: good, Announced: good, GuestUp: good, ConflictFree: good}
	came := v1alpha1.FloatingIPStatus{
		Phase: v1alpha1.PhaseReady, Node: "n2", Pod: "new", LastMove: &v1alpha1.Move{From: "n1", To: "n2", Time: then},
	}
	for name, tt := range map[string]struct {
		change func(*v1alpha1.FloatingIPStatus, *node.Status)
		yields bool
	}{
		"the guest has come":              {func(*v1alpha1.FloatingIPStatus, *node.Status) {}, true},
		"the migration was given up":      {func(_ *v1alpha1.FloatingIPStatus, s *node.Status) { s.To = "" }, false},
		"it goes to a third node":         {func(_ *v1alpha1.FloatingIPStatus, s *node.Status) { s.To = "n3" }, false},
		"the new node has it no more":     {func(f *v1alpha1.FloatingIPStatus, _ *node.Status) { f.Node, f.LastMove = "", nil }, false},
		"the new node tells of no move":   {func(f *v1alpha1.FloatingIPStatus, _ *node.Status) { f.LastMove = nil }, false},
		"it came there from a third node": {func(f *v1alpha1.FloatingIPStatus, _ *node.Status) { f.LastMove.From = "n3" }, false},
		"that move was to a third node":   {func(f *v1alpha1.FloatingIPStatus, _ *node.Status) { f.LastMove.To = "n3" }, false},
		"the object names the old node":   {func(f *v1alpha1.FloatingIPStatus, _ *node.Status) { f.Node = "n1" }, false},
	} {
		f, mine := floatingIP(nil), s
		f.Status = *came.DeepCopy()
		tt.change(&f.Status, &mine)
		before := *f.Status.DeepCopy()
		after := statusOf(f, "n1", mine, now)
		if yields := sameStatus(before, after); yields != tt.yields || !yields && (after.Node != "n1" || after.Pod != "old") {
			t.Errorf("%s: yields %t, want %t: %s", name, yields, tt.yields, cmp.Diff(before, after))
		}
	}
}
