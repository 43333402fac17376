package main

import (
	"context"
	"errors"
	"testing"

	"floatip.io/floatip/ipam"
)

// TestEndsWhenTheLedgerIsInDoubt: the process ends with an error, so that it is started again, and only then.
func TestEndsWhenTheLedgerIsInDoubt(t *testing.T) {
	broken := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := untilBroken(broken).Start(ctx); err != nil {
		t.Errorf("at the end of the process: %v", err)
	}
	close(broken)
	if err := untilBroken(broken).Start(t.Context()); !errors.Is(err, ipam.ErrUncertain) {
		t.Errorf("when the disk has failed: %v, want %v", err, ipam.ErrUncertain)
	}
}
