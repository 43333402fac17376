package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"floatip.io/floatip/nat/node"
)

// serveHealth answers the kubelet's probes until ctx is done.
//
// /healthz is 200 while the loop makes rounds, with or without the API server: restarting an agent brings no API server
// back. /readyz is 200 after the first complete round.
func serveHealth(ctx context.Context, address string, agent *node.Agent) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("health and metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", answer(agent.Healthy))
	mux.HandleFunc("GET /readyz", answer(agent.ReadyErr))
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		agent.WriteMetrics(w)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 30 * time.Second}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("health and metrics: %w", err)
	}
	return nil
}

func answer(check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if err := check(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	}
}
