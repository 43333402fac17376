package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"floatip.io/floatip/ipam"
)

// Paths of the socket's HTTP.
const (
	pathCheck    = "/v1/check"
	pathHistory  = "/v1/history"
	pathList     = "/v1/list"
	pathDisputes = "/v1/disputes"
	pathResolve  = "/v1/resolve"
	pathRelease  = "/v1/release"
	pathBackup   = "/v1/backup"
)

// socketMode lets the container's own user ask, and nobody else.
const socketMode = 0o600

// questionTimeout bounds how long somebody may take to ask.
const questionTimeout = 5 * time.Second

// answerTimeout bounds how long an answer may take to be read, a backup too: bbolt uses no page again that a view of the
// file, such as a backup's, still needs.
const answerTimeout = 2 * time.Minute

// shutdownTimeout is how long the answers that are under way may take at the end of the process. What is not over by then,
// such as a backup that nobody reads, is cut off: the file cannot be closed as long as somebody has a view of it.
const shutdownTimeout = 2 * time.Second

// Server serves a Book on a unix socket.
type Server struct {
	// Path of the socket. What an earlier process left there is replaced.
	Path string
	Book Book
	// Ready says why the ledger cannot be asked yet, as while the webhook starts; nil for always ready.
	Ready func() error
}

// Start listens until ctx ends. It returns an error if it cannot listen.
func (s *Server) Start(ctx context.Context) error {
	listener, err := listen(s.Path)
	if err != nil {
		return fmt.Errorf("listen for ledger commands on %s: %w", s.Path, err)
	}
	server := &http.Server{
		Handler: s.Handler(), ReadTimeout: questionTimeout, WriteTimeout: answerTimeout, MaxHeaderBytes: maxQuestion,
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve ledger commands on %s: %w", s.Path, err)
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err = server.Shutdown(end)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	return errors.Join(err, os.Remove(s.Path))
}

// listen makes the socket in a folder that nobody else can enter, and moves it to its place when its mode is right.
func listen(path string) (net.Listener, error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".socket-") // mode 0700
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	fresh := filepath.Join(dir, "s")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(fresh, socketMode), os.Rename(fresh, path)); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// Handler answers the questions.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathCheck, answer(func(r *http.Request) (any, error) { return s.Book.Check(r.Context()) }))
	mux.HandleFunc("GET "+pathHistory, answer(func(r *http.Request) (any, error) {
		q, err := parseQuery(r.URL.Query())
		if err != nil {
			return nil, err
		}
		return s.Book.History(r.Context(), q)
	}))
	mux.HandleFunc("GET "+pathList, answer(func(r *http.Request) (any, error) {
		q, err := parseQuery(r.URL.Query())
		if err != nil {
			return nil, err
		}
		return s.Book.List(r.Context(), q.Address, q.Limit)
	}))
	mux.HandleFunc("GET "+pathDisputes, answer(func(r *http.Request) (any, error) { return s.Book.Disputes(r.Context()) }))
	mux.HandleFunc("POST "+pathResolve, answer(func(r *http.Request) (any, error) {
		d, err := readDecision(r)
		if err != nil {
			return nil, err
		}
		return s.Book.Resolve(r.Context(), d.Address, d.Keep, d.Reason)
	}))
	mux.HandleFunc("POST "+pathRelease, answer(func(r *http.Request) (any, error) {
		d, err := readDecision(r)
		if err != nil {
			return nil, err
		}
		return s.Book.Release(r.Context(), d.Address, d.StoppedOn, d.Reason)
	}))
	mux.HandleFunc("GET "+pathBackup, func(w http.ResponseWriter, r *http.Request) {
		if err := s.Book.Backup(r.Context(), w); err != nil {
			panic(http.ErrAbortHandler) // the client sees that the copy ends early
		}
	})
	return s.whenReady(mux)
}

func (s *Server) whenReady(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.Ready != nil {
			if err := s.Ready(); err != nil {
				write(w, http.StatusServiceUnavailable, failure{err.Error() + "; try again in some seconds"})
				return
			}
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxQuestion)
		next.ServeHTTP(w, r)
	})
}

func answer(ask func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := ask(r)
		if err != nil {
			write(w, statusOf(err), failure{err.Error()})
			return
		}
		write(w, http.StatusOK, body)
	}
}

func write(w http.ResponseWriter, status int, body any) {
	raw, err := json.Marshal(body)
	if err != nil {
		panic(fmt.Sprintf("admin: encode answer: %v", err)) // structs of texts, numbers and times
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(raw) // whoever asked has gone
}

func statusOf(err error) int {
	switch {
	case errors.Is(err, ErrInvalid), errors.Is(err, ipam.ErrInvalid):
		return http.StatusBadRequest
	case errors.Is(err, ipam.ErrNotHeld):
		return http.StatusNotFound
	case errors.Is(err, ErrCarried):
		return http.StatusConflict
	}
	return http.StatusInternalServerError
}

func readDecision(r *http.Request) (decision, error) {
	var d decision
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&d); err != nil {
		return decision{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if !d.Address.IsValid() {
		return decision{}, fmt.Errorf("%w: an address is needed", ErrInvalid)
	}
	if len(d.Reason) > maxReason {
		return decision{}, fmt.Errorf("%w: the reason has %d bytes, at most %d are kept", ErrInvalid, len(d.Reason), maxReason)
	}
	var err error
	if d.Address, err = ipam.ParseAddress(d.Address.String()); err != nil {
		return decision{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return d, nil
}

// Keys of a question in the URL.
const (
	keyAddress   = "address"
	keyNamespace = "namespace"
	keyName      = "name"
	keySince     = "since"
	keyUntil     = "until"
	keyLimit     = "limit"
)

func parseQuery(values url.Values) (q ipam.Query, err error) {
	q.Namespace, q.Name = values.Get(keyNamespace), values.Get(keyName)
	if text := values.Get(keyAddress); text != "" {
		if q.Address, err = ipam.ParseAddress(text); err != nil {
			return ipam.Query{}, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	for key, into := range map[string]*time.Time{keySince: &q.From, keyUntil: &q.Until} {
		if text := values.Get(key); text != "" {
			if *into, err = time.Parse(time.RFC3339Nano, text); err != nil {
				return ipam.Query{}, fmt.Errorf("%w: %s: %w", ErrInvalid, key, err)
			}
		}
	}
	if text := values.Get(keyLimit); text != "" {
		if q.Limit, err = strconv.Atoi(text); err != nil {
			return ipam.Query{}, fmt.Errorf("%w: limit: %w", ErrInvalid, err)
		}
	}
	return q, nil
}

func formatQuery(q ipam.Query) url.Values {
	values := url.Values{}
	set := func(key, value string) {
		if value != "" {
			values.Set(key, value)
		}
	}
	set(keyNamespace, q.Namespace)
	set(keyName, q.Name)
	if q.Address != (netip.Addr{}) {
		set(keyAddress, q.Address.String())
	}
	for key, t := range map[string]time.Time{keySince: q.From, keyUntil: q.Until} {
		if !t.IsZero() {
			set(key, t.UTC().Format(time.RFC3339Nano))
		}
	}
	if q.Limit != 0 {
		set(keyLimit, strconv.Itoa(q.Limit))
	}
	return values
}
