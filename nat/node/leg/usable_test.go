package leg

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestAwaitUsable: links that never become usable are waited for together, and one that does so late is waited for.
func TestAwaitUsable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if err := awaitUsable(250, func(int) (bool, error) { return false, nil }); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 2*activation {
			t.Errorf("250 links without a carrier were waited for %s, want %s in all", took, activation)
		}
		began = time.Now()
		late := func(n int) (bool, error) { return n != 7 || time.Since(began) >= activation/2, nil }
		if err := awaitUsable(20, late); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < activation/2 || took >= activation {
			t.Errorf("a link that is usable after %s was waited for %s", activation/2, took)
		}
	})
}
