package serving

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
)

const (
	// idleTimeout is how long a connection without a request is kept, also one that never had any: of those that the API
	// server opens in a burst, many are of no use before the next one. The API server closes one after 90 s
	// (k8s.io/apimachinery pkg/util/net/http.go, SetTransportDefaults), and does not repeat a request that meets a
	// connection which closes at that moment, since it is a POST (net/http transport.go, shouldRetryRequest): the VM would be
	// refused. So it must be the API server who closes.
	idleTimeout = 5 * time.Minute
	// readTimeout bounds handshake, header and body of a request; 30 s is the longest time limit of a hook. Without it
	// whoever reaches the port could keep connections, and what is read from them, for ever.
	readTimeout = 32 * time.Second
	// shutdownTimeout lets requests end that have begun.
	shutdownTimeout = time.Minute
	maxHeader       = 1 << 20 // bytes
)

// Server serves hooks. It is a webhook.Server of controller-runtime, whose own server keeps connections for 90 s.
type Server struct {
	address string
	config  *tls.Config
	mux     *http.ServeMux
	started atomic.Bool
	turns   *turns

	idleTimeout, readTimeout time.Duration
}

var _ webhook.Server = (*Server)(nil)

// New returns a server for an address such as ":9443". Of config, certificate and client certificates are the caller's;
// the rest is set here.
func New(address string, config *tls.Config) *Server {
	config = config.Clone()
	config.MinVersion = tls.VersionTLS13
	config.NextProtos = []string{"http/1.1"} // the only one that the API server speaks with webhooks
	// The API server resumes no session (client-go transport.TLSConfigFor sets no ClientSessionCache), and who else would has
	// no need to.
	config.SessionTicketsDisabled = true
	return &Server{
		address: address, config: config, mux: http.NewServeMux(), idleTimeout: idleTimeout, readTimeout: readTimeout,
		turns: newTurns(handshakePause, handshakePatience),
	}
}

// Register serves hook at path. It panics if there is one already.
func (s *Server) Register(path string, hook http.Handler) { s.mux.Handle(path, hook) }

// WebhookMux returns what is served.
func (s *Server) WebhookMux() *http.ServeMux { return s.mux }

// NeedLeaderElection says that every replica serves.
func (*Server) NeedLeaderElection() bool { return false }

// Start listens and serves until ctx ends, and then until all requests have been answered.
func (s *Server) Start(ctx context.Context) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", s.address)
	if err != nil {
		return fmt.Errorf("webhook server: %w", err)
	}
	return s.Serve(ctx, listener)
}

// Serve is Start with a listener, which it closes.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler: s.turns.answering(s.mux), MaxHeaderBytes: maxHeader, IdleTimeout: s.idleTimeout, ReadTimeout: s.readTimeout,
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	ended := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		ended <- server.Shutdown(ctx)
	})
	s.started.Store(true)
	err := server.Serve(patientListener{tls.NewListener(turnListener{listener, s.turns}, s.config), s})
	if !errors.Is(err, http.ErrServerClosed) {
		stop()
		return fmt.Errorf("webhook server: %w", err)
	}
	return <-ended
}

// StartedChecker returns a health check that connects to the server.
func (s *Server) StartedChecker() healthz.Checker {
	return func(*http.Request) error {
		if !s.started.Load() {
			return errors.New("webhook server has not been started yet")
		}
		dialer := &net.Dialer{Timeout: 10 * time.Second}
		c, err := tls.DialWithDialer(dialer, "tcp", s.address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return fmt.Errorf("webhook server is not reachable: %w", err)
		}
		return c.Close()
	}
}
