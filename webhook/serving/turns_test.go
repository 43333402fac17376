package serving

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

const never = time.Hour

// withTurns starts a server like serve. In the end whoever still waits is let in.
func withTurns(t *testing.T, hook http.HandlerFunc, pause, patience time.Duration) (*turns, string, *tls.Config) {
	t.Helper()
	line := newTurns(pause, patience)
	address, client, _ := serve(t, hook, func(s *Server) { s.turns = line })
	t.Cleanup(func() {
		line.mu.Lock()
		defer line.mu.Unlock()
		for _, turn := range line.waiting {
			close(turn)
		}
		line.waiting = nil
	})
	return line, address, client
}

// queued returns when so many connections wait.
func (t *turns) queued(test *testing.T, want int) {
	test.Helper()
	err := wait.PollUntilContextTimeout(test.Context(), time.Millisecond, time.Minute, true, func(context.Context) (bool, error) {
		t.mu.Lock()
		defer t.mu.Unlock()
		return len(t.waiting) == want, nil
	})
	if err != nil {
		test.Fatalf("wait for %d connections to wait: %v", want, err)
	}
}

func get(t *testing.T, transport *http.Transport, url string) error {
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return err
}

// A burst as the API server makes one: for the second request a connection is opened. It waits, and the request is
// answered on the first one.
func TestRequestsGoBeforeHandshakes(t *testing.T) {
	begun, goOn := make(chan struct{}), make(chan struct{})
	line, address, client := withTurns(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("first") {
			close(begun)
			<-goOn
		}
	}, never, never)
	transport := &http.Transport{TLSClientConfig: client}
	t.Cleanup(transport.CloseIdleConnections)
	answers := make(chan error, 2)
	go func() { answers <- get(t, transport, "https://"+address+"/hook?first") }()
	<-begun
	go func() { answers <- get(t, transport, "https://"+address+"/hook") }()
	line.queued(t, 1)
	close(goOn)
	for range 2 {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	line.queued(t, 1) // still
}

// A request on a connection that is there already counts, whatever it asks for.
func TestRequestsAreNoted(t *testing.T) {
	line, address, client := withTurns(t, func(http.ResponseWriter, *http.Request) {}, never, never)
	transport := &http.Transport{TLSClientConfig: client}
	t.Cleanup(transport.CloseIdleConnections)
	for _, path := range []string{"/hook", "/hook", "/else"} {
		before := line.last.Load()
		if err := get(t, transport, "https://"+address+path); err != nil {
			t.Fatal(err)
		}
		if line.last.Load() <= before {
			t.Errorf("request for %s was not noted", path)
		}
	}
}

// Whoever waits is let in: when nothing happens for a moment, or after a while whatever happens.
func TestEveryConnectionIsLetIn(t *testing.T) {
	for _, tt := range []struct {
		name            string
		pause, patience time.Duration
	}{
		{"by the pause", time.Millisecond, never},
		{"by the patience", never, time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			line, address, client := withTurns(t, func(http.ResponseWriter, *http.Request) {}, tt.pause, tt.patience)
			line.note() // as if a request ended now
			const count = 20
			ended := make(chan error, count)
			for range count {
				go func() {
					c, err := tls.Dial("tcp", address, client)
					if err == nil {
						err = c.Close()
					}
					ended <- err
				}()
			}
			for range count {
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}
			line.queued(t, 0)
		})
	}
}

// Who connects and sends nothing, or too little, keeps nobody else.
func TestSilenceKeepsNobody(t *testing.T) {
	line, address, client := withTurns(t, func(http.ResponseWriter, *http.Request) {}, time.Millisecond, never)
	for _, sent := range []string{"", "\x16\x03\x01"} {
		c, err := net.Dial("tcp", address)
		if err == nil {
			_, err = io.WriteString(c, sent)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	c, err := tls.Dial("tcp", address, client)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	line.queued(t, 0)
}
