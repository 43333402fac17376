package ipam

import (
	"math/rand/v2"
	"testing"
)

// The runs are compared with a plain set while random numbers come and go, so that chunks split, join and vanish.
func TestRunsAgainstASet(t *testing.T) {
	const size = 4096
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var s runs
	s.push(run{num{}, num{lo: size - 1}})
	free := [size]bool{}
	for i := range free {
		free[i] = true
	}
	for step := range 200_000 {
		x := random.IntN(size)
		switch phase := step / 20_000 % 3; { // empty it in one phase, fill it in another
		case phase == 0 && random.IntN(10) > 0, phase == 2 && random.IntN(2) > 0:
			if got := s.take(num{lo: uint64(x)}); got != free[x] {
				t.Fatalf("step %d: take(%d) = %t, want %t", step, x, got, free[x])
			}
			free[x] = false
		default:
			s.give(num{lo: uint64(x)})
			free[x] = true
		}
		probe := random.IntN(size)
		if got := s.has(num{lo: uint64(probe)}); got != free[probe] {
			t.Fatalf("step %d: has(%d) = %t, want %t", step, probe, got, free[probe])
		}
		want := probe
		for want < size && !free[want] {
			want++
		}
		if got, ok := s.ceil(num{lo: uint64(probe)}); ok != (want < size) || ok && got.lo != uint64(want) {
			t.Fatalf("step %d: ceil(%d) = %d, %t, want %d", step, probe, got.lo, ok, want)
		}
	}
	checkRuns(t, &s, free[:])
}

// checkRuns proves that s has exactly the free numbers in runs that do not touch.
func checkRuns(t *testing.T, s *runs, free []bool) {
	t.Helper()
	seen := make([]bool, len(free))
	for c := range s.chunks {
		for r := range s.chunks[c].n {
			one := *s.at(place{c, r})
			if one.first.lo > 0 && free[one.first.lo-1] || int(one.last.lo)+1 < len(free) && free[one.last.lo+1] {
				t.Errorf("the run %d-%d could be longer", one.first.lo, one.last.lo)
			}
			for x := one.first.lo; x <= one.last.lo; x++ {
				seen[x] = true
			}
		}
	}
	for x := range free {
		if seen[x] != free[x] {
			t.Errorf("%d: in the runs %t, want %t", x, seen[x], free[x])
		}
	}
}
