package node

import (
	"testing"
	"time"

	"floatip.io/floatip/nat/node/peer"
)

// TestStall: a stall is told when both its ends are known, whoever tells first, and not at all where one is a guess.
func TestStall(t *testing.T) {
	heard := time.Now().Add(-time.Second)
	first := heard.Add(40 * time.Millisecond)
	staged := Grant{Mode: Staged, From: "old"}
	arrived := Grant{Mode: Active, Came: "old"}
	frame := func(j *journey) { j.arrive(first) }
	word := func(j *journey) { j.mode(arrived) }
	told := func(j *journey) { j.settle(peer.Outcome{Heard: heard}, 5) }
	for _, tt := range []struct {
		name string
		then []func(*journey)
		want time.Duration // -1: none
	}{
		{"the first frame, then what the old node knows", []func(*journey){frame, word, told}, 40 * time.Millisecond},
		{"all that before a round", []func(*journey){frame, told, word}, 40 * time.Millisecond},
		{"KubeVirt is faster than the one who reads the first frame", []func(*journey){word, frame, told}, 40 * time.Millisecond},
		{"and so is the old node", []func(*journey){word, told, frame}, 40 * time.Millisecond},
		{"nobody heard a frame", []func(*journey){word, told}, -1},
		{"an agent that starts anew finds the guest there", []func(*journey){func(j *journey) { j.arrive(time.Time{}) }, word, told}, -1},
		{"the old node does not know", []func(*journey){frame, word, func(j *journey) { j.settle(peer.Outcome{}, 5) }}, -1},
		{"the old node is gone", []func(*journey){frame, word}, -1},
		{"the guest was heard on both nodes at a time", []func(*journey){
			func(j *journey) { j.arrive(heard.Add(-time.Millisecond)) }, word, told}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			j := new(journey)
			j.mode(staged)
			for _, f := range tt.then {
				f(j)
			}
			have := j.lastMove()
			if have == nil || have.From != "old" {
				t.Fatalf("the move is %+v", have)
			}
			stall := j.uncountedStall()
			if tt.want < 0 {
				if have.Stall != nil || stall != nil {
					t.Errorf("a stall of %s, want none", have.Stall)
				}
				return
			}
			if have.Stall == nil || *have.Stall != tt.want || stall == nil || *stall != tt.want {
				t.Fatalf("a stall of %v, counted as %v; want %s", have.Stall, stall, tt.want)
			}
			if again := j.uncountedStall(); again != nil {
				t.Error("the stall is counted twice")
			}
		})
	}
}
