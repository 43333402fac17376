package cluster

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"floatip.io/floatip/ipam/v1alpha1"
)

// TestTenMinutesAway: on a clock of its own, an API server that was away for ten minutes is asked again within seconds of
// its return, and not more often than that meanwhile. One is told of it once.
func TestTenMinutesAway(t *testing.T) {
	const away = 10 * time.Minute
	synctest.Test(t, func(t *testing.T) {
		var said strings.Builder
		asked, began := 0, time.Now()
		p := patient{
			wrapped: cache.ToListerWatcherWithContext(&cache.ListWatch{
				ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
					if asked++; time.Since(began) < away {
						return nil, errors.New("connection refused")
					}
					return &v1alpha1.FloatingIPList{}, nil
				},
				WatchFuncWithContext: func(context.Context, metav1.ListOptions) (watch.Interface, error) {
					return nil, apierrors.NewResourceExpired("too old")
				},
			}),
			outage: &outage{log: slog.New(slog.NewTextHandler(&said, nil))},
		}
		if _, err := p.ListWithContext(t.Context(), metav1.ListOptions{}); err != nil {
			t.Fatal(err)
		}
		if late := time.Since(began) - away; late > backMost*3/2 {
			t.Errorf("asked again %s after the return, want at most %s", late, backMost*3/2)
		}
		if most := int(away/backMost) + 10; asked > most {
			t.Errorf("asked %d times in %s, want at most %d", asked, away, most)
		}
		if have := strings.Count(said.String(), "\n"); have != 2 || !strings.Contains(said.String(), "after=10m") {
			t.Errorf("said, in %d lines:\n%swant one when it goes and one when it is back after ten minutes", have, &said)
		}
		// What the API server says itself is the reflector's to judge.
		if _, err := p.WatchWithContext(t.Context(), metav1.ListOptions{}); !apierrors.IsResourceExpired(err) {
			t.Errorf("have %v, want the API server's own word", err)
		}
		// The end of the agent ends the wait.
		began = time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := p.ListWithContext(ctx, metav1.ListOptions{}); err == nil || time.Since(began) > time.Minute {
			t.Errorf("have %v after %s, want an error when the agent ends", err, time.Since(began))
		}
	})
}

func TestIsAway(t *testing.T) {
	status := func(code int32) error { return &apierrors.StatusError{ErrStatus: metav1.Status{Code: code}} }
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{errors.New("connection refused"), true},
		{status(http.StatusBadGateway), true},
		{status(http.StatusServiceUnavailable), true},
		{status(http.StatusForbidden), true},
		{status(http.StatusNotFound), true},
		{apierrors.NewResourceExpired("too old"), false},
		{apierrors.NewBadRequest("unknown option"), false},
		{apierrors.NewTimeoutError("Too large resource version", 1), false},
		{apierrors.NewTooManyRequestsError("later"), false},
	} {
		if have := isAway(tt.err); have != tt.want {
			t.Errorf("%v: away is %t, want %t", tt.err, have, tt.want)
		}
	}
}

// TestManyStatusesAtOnce: client-go holds nobody's status back when all VMs of a node start together.
func TestManyStatusesAtOnce(t *testing.T) {
	c, err := New(&rest.Config{Host: "127.0.0.1:1"}, "n1", func() {}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	const vms, writes = 250, 2 // Bound and Ready
	for n := range vms * writes {
		if !c.floatip.GetRateLimiter().TryAccept() {
			t.Fatalf("request %d of %d at once has to wait", n+1, vms*writes)
		}
	}
}
