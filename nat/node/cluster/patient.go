package cluster

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

const (
	// backFirst and backMost bound the pause before an API server that is away is asked again, each with up to half of it
	// added by chance. So changes catch up within backMost and a half, however long it was away; the reflector's own pause
	// grows to 30 to 60 s (client-go tools/cache/reflector.go, defaultBackoffMax). A thousand nodes with six watches each
	// make some thousand attempts a second of it, which a server that is not there does not notice, and one that comes back
	// puts in order by itself (API priority and fairness).
	backFirst = 500 * time.Millisecond
	backMost  = 5 * time.Second
)

// patient lists and watches like the one it wraps. An API server that is away is waited for here.
type patient struct {
	wrapped cache.ListerWatcherWithContext
	outage  *outage
}

func (p patient) List(o metav1.ListOptions) (runtime.Object, error) {
	return p.ListWithContext(context.Background(), o)
}

func (p patient) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return p.WatchWithContext(context.Background(), o)
}

func (p patient) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	return untilBack(ctx, p.outage, func() (runtime.Object, error) { return p.wrapped.ListWithContext(ctx, o) })
}

func (p patient) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	return untilBack(ctx, p.outage, func() (watch.Interface, error) { return p.wrapped.WatchWithContext(ctx, o) })
}

// untilBack calls ask until it gets an answer of the API server, or ctx is done.
func untilBack[T any](ctx context.Context, o *outage, ask func() (T, error)) (T, error) {
	pause := wait.Backoff{Duration: backFirst, Factor: 2, Jitter: 0.5, Steps: 100, Cap: backMost}
	for {
		answer, err := ask()
		if err == nil || !isAway(err) {
			o.ends()
			return answer, err
		}
		o.goesOn(err)
		select {
		case <-ctx.Done():
			return answer, err
		case <-time.After(pause.Step()):
		}
	}
}

// isAway says whether err means that there is no API server that serves this: no connection, the word of a load balancer
// that it has none, or the answers of one that has just begun and knows neither the right (403) nor the resource (404) yet.
// What else it says is about the request, and the reflector knows what to do: too old or too new a version, too many
// requests, an option that it does not know.
func isAway(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return true
	}
	switch status.Status().Code {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		return true
	}
	return false
}

// outage tells of an API server that is away, once for all watches.
type outage struct {
	log *slog.Logger

	mu    sync.Mutex // guards since
	since time.Time
}

func (o *outage) goesOn(reason error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() {
		o.since = time.Now()
		o.log.Warn("the API server does not serve: packets go on, changes wait", "reason", reason)
	}
}

func (o *outage) ends() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.since.IsZero() {
		o.log.Info("the API server serves again", "after", time.Since(o.since).Round(time.Second))
		o.since = time.Time{}
	}
}
