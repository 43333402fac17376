package lab

import (
	"testing"
	"time"
)

// Within waits until ok holds and fails t if it does not in time.
func Within(t testing.TB, patience time.Duration, what string, ok func() bool) {
	t.Helper()
	begun, deadline := time.Now(), time.After(patience)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("not within %s: %s", patience, what)
		// The longer it takes, the more others need the processor.
		case <-time.After(min(max(time.Millisecond, time.Since(begun)/20), 50*time.Millisecond)):
		}
	}
}
