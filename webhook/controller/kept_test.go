package controller

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

// ended is the ledger of a process that ended when it had promised 192.168.100.50, on its disk, to a VM of that name, or of one
// that the API server was to generate. keys are what the VM shows if it is stored.
func ended(t *testing.T, name string) (path string, keys map[string]string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "ledger.db")
	w := newWorldOn(t, path)
	w.ledger.SetPools(valid(mustPools(t, w)))
	offer, err := w.ledger.Reserve(t.Context(), ipam.Request{Claim: floatip.NewClaim(), Namespace: "vms", Name: name, WriteAhead: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.ledger.Close(); err != nil {
		t.Fatal(err)
	}
	return path, map[string]string{floatip.AnnotationAddress: offer.Addresses[0].String(), floatip.AnnotationClaim: offer.Claim.String()}
}

// The VM was stored before floatip is started again: it has what it was promised, and a copy of it has nothing.
func TestKeptPromiseOfAVMThatIsListed(t *testing.T) {
	path, keys := ended(t, "a")
	w := newWorldOn(t, path, vm("a", "uid-a", keys), vm("copy", "uid-copy", keys))
	w.start()
	if got := w.state(); got != "Bound uid-a" {
		t.Error(got)
	}
	if disputes := w.ledger.Disputes(); len(disputes) > 0 {
		t.Errorf("disputes: %+v", disputes)
	}
	if diff := cmp.Diff([]string(nil), w.events()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// A name was generated for it.
func TestKeptPromiseOfAVMWithAGeneratedName(t *testing.T) {
	path, keys := ended(t, "")
	w := newWorldOn(t, path, vm("web-x7", "uid-a", keys))
	w.start()
	if got := w.state(); got != "Bound uid-a" {
		t.Error(got)
	}
}

// The API server stores the VM only after floatip was started again.
func TestKeptPromiseOfAVMThatIsStoredLater(t *testing.T) {
	path, keys := ended(t, "a")
	w := newWorldOn(t, path)
	w.start()
	if w.look(); w.state() != "Pending " {
		t.Errorf("before it is stored: %s", w.state())
	}
	w.create(vm("a", "uid-a", keys))
	if w.look(); w.state() != "Bound uid-a" {
		t.Error(w.state())
	}
	if got := w.events(); len(got) != 1 {
		t.Errorf("events: %q", got)
	}
}

// What was kept is looked for as all promises are, by its claim if it has no name.
func TestSweepOfKeptPromises(t *testing.T) {
	for name, tc := range map[string]struct {
		promised string
		stored   string // under which name, empty if it never is
		want     string
	}{
		"never stored":                      {"a", "", "free"},
		"never stored, name not known":      {"", "", "free"},
		"stored, and nobody told":           {"a", "a", "Bound uid-a"},
		"stored under a generated name":     {"", "web-x7", "Bound uid-a"},
		"another VM of that name is stored": {"a", "other", "free"},
	} {
		t.Run(name, func(t *testing.T) {
			path, keys := ended(t, tc.promised)
			w := newWorldOn(t, path)
			w.start()
			var object client.Object
			switch tc.stored {
			case "":
			case "other":
				object = vm("a", "uid-other", nil)
			default:
				object = vm(tc.stored, "uid-a", keys)
			}
			if object != nil {
				w.create(object)
			}
			for _, at := range []struct {
				after time.Duration
				want  string
			}{{80 * time.Second, "Pending "}, {100 * time.Second, tc.want}} {
				w.now = epoch.Add(at.after)
				if err := w.pending.Sweep(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := w.state(); got != at.want {
					t.Errorf("after %s: %q, want %q", at.after, got, at.want)
				}
			}
			if line, _ := w.ledger.Lookup(address(50)); line.State == ipam.Bound && line.Owner.Name != tc.stored {
				t.Errorf("it is bound to %s", line.Owner)
			}
		})
	}
}

func TestSweepOfKeptPromisesWithoutAnAnswer(t *testing.T) {
	for _, name := range []string{"a", ""} {
		path, _ := ended(t, name)
		w := newWorldOn(t, path)
		w.start()
		w.now = epoch.Add(time.Hour)
		w.pending.Cluster.Live = unreachable{}
		if err := w.pending.Sweep(t.Context()); err == nil {
			t.Error("no error")
		}
		if got := w.state(); got != "Pending " {
			t.Error(got)
		}
	}
}
