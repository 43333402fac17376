package webhook

import (
	"errors"
	"net/http"
	"sync/atomic"
)

// Gate holds admission back until the ledger is loaded and knows the cluster's VMs: an address that is handed out
// before that may be held already. Until it is opened, requests are answered with 503 and Retry-After, which the API
// server repeats within the webhook's time limit (client-go rest/with_retry.go).
//
// The zero Gate is closed.
type Gate struct {
	open atomic.Bool
}

// Open lets requests through from now on.
func (g *Gate) Open() { g.open.Store(true) }

var errGateClosed = errors.New("floatip is starting: ledger and cluster are being read")

// Ready is a health check: nil once the gate is open.
func (g *Gate) Ready(*http.Request) error {
	if !g.open.Load() {
		return errGateClosed
	}
	return nil
}

// Wrap returns next behind the gate.
func (g *Gate) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !g.open.Load() {
			w.Header().Set("Retry-After", "1") // seconds, RFC 9110 section 10.2.3
			http.Error(w, errGateClosed.Error(), http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, r)
	})
}
