package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

var (
	now    = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	fifty  = netip.MustParseAddr("192.0.2.50")
	web    = floatip.Owner{Namespace: "prod", Name: "web", UID: "uid-web"}
	db     = floatip.Owner{Namespace: "prod", Name: "db", UID: "uid-db"}
	byUser = ipam.Cause{User: "alice", RequestUID: "request-1"}
)

// desk is a ledger that is served on a socket, beside a cluster that the test makes up.
type desk struct {
	t       *testing.T
	ledger  *ipam.Ledger
	path    string
	cluster *cluster
	client  *Client
	socket  string
	later   time.Duration // than now, by the ledger's clock
}

// cluster answers as it is told.
type cluster struct {
	pools   []ipam.Pool
	seen    []ipam.Sighting
	later   []ipam.Sighting // seen from the second look on, if not nil
	carrier string
	node    string // that still answers
	err     error
	settled []floatip.Owner
}

func (c *cluster) Pools(context.Context) ([]ipam.Pool, error) { return c.pools, c.err }

func (c *cluster) Seen(context.Context) ([]ipam.Sighting, error) {
	seen := c.seen
	if c.later != nil {
		c.seen = c.later
	}
	return seen, c.err
}

func (c *cluster) Carrier(context.Context, floatip.Owner) (string, error) { return c.carrier, c.err }

func (c *cluster) Announcer(context.Context, floatip.Owner) (string, error) { return c.node, c.err }

func (c *cluster) Settle(_ context.Context, _ netip.Addr, owners []floatip.Owner) error {
	c.settled = owners
	return c.err
}

// newDesk has the pool 192.0.2.50 to .59, of which prod/web holds .50.
func newDesk(t *testing.T) *desk {
	t.Helper()
	dir := t.TempDir()
	d := &desk{t: t, path: filepath.Join(dir, "ledger.db"), socket: filepath.Join(dir, "run.sock")}
	var err error
	if d.ledger, err = ipam.Open(d.path, ipam.Options{Now: func() time.Time { return now.Add(d.later) }}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		report, err := d.ledger.Check(context.Background(), ipam.Against{})
		if err := errors.Join(err, report.Err()); err != nil && !errors.Is(err, ipam.ErrClosed) {
			t.Error(err)
		}
		d.ledger.Close()
	})
	pool, err := ipam.ParsePool(ipam.PoolText{Name: "lan", Addresses: []string{"192.0.2.50-192.0.2.59"}})
	if err != nil {
		t.Fatal(err)
	}
	pool.AutoAssign = true
	d.cluster = &cluster{pools: []ipam.Pool{pool}, seen: []ipam.Sighting{{Address: fifty, Owner: web, Source: "FloatingIP"}}}
	d.ledger.SetPools(d.cluster.pools)
	d.allocate(web)
	d.serve(nil)
	return d
}

// allocate gives the owner the next address.
func (d *desk) allocate(owner floatip.Owner) {
	d.t.Helper()
	claim := floatip.NewClaim()
	_, err := d.ledger.Reserve(d.t.Context(), ipam.Request{Claim: claim, Namespace: owner.Namespace, Name: owner.Name})
	if err == nil {
		_, err = d.ledger.Commit(d.t.Context(), claim, owner, nil, byUser)
	}
	if err == nil {
		_, err = d.ledger.Bind(d.t.Context(), claim, owner, ipam.Cause{})
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// serve answers on the socket until the test ends.
func (d *desk) serve(ready func() error) {
	d.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	server := &Server{Path: d.socket, Book: Book{Ledger: d.ledger, Cluster: d.cluster, Pause: time.Millisecond}, Ready: ready}
	go func() { done <- server.Start(ctx) }()
	d.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			d.t.Errorf("serve: %v", err)
		}
		if _, err := os.Stat(d.socket); err == nil {
			d.t.Error("the socket is still there after the end")
		}
	})
	d.client = NewClient(d.socket)
	for {
		if _, err := os.Stat(d.socket); err == nil {
			return
		}
		select {
		case err := <-done:
			d.t.Fatal(err)
		default:
		}
	}
}

// dispute makes prod/db claim what prod/web holds.
func (d *desk) dispute() {
	d.t.Helper()
	if _, err := d.ledger.Adopt(d.t.Context(), []ipam.Sighting{{Address: fifty, Owner: db, Source: "FloatingIP"}}, false); err != nil {
		d.t.Fatal(err)
	}
}

var dates = cmpopts.EquateComparable(netip.Addr{})

// What the socket answers is what the ledger says.
func TestQuestions(t *testing.T) {
	d := newDesk(t)
	d.allocate(db)
	held := Line{Address: fifty, Pool: "lan", State: "Bound", VM: web, Since: now}
	second := Line{Address: fifty.Next(), Pool: "lan", State: "Bound", VM: db, Since: now}
	for _, tc := range []struct {
		after netip.Addr
		limit int
		want  Lines
	}{
		{netip.Addr{}, 0, Lines{Lines: []Line{held, second}}},
		{netip.Addr{}, 1, Lines{Lines: []Line{held}, More: true}},
		{fifty, 1, Lines{Lines: []Line{second}}},
		{fifty.Next(), 0, Lines{Lines: []Line{}}},
	} {
		got, err := d.client.List(t.Context(), tc.after, tc.limit)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tc.want, got, dates); diff != "" {
			t.Errorf("list after %s (-want +got):\n%s", tc.after, diff)
		}
	}
	committed := Event{Time: now, Action: "Committed", Address: fifty, Pool: "lan", VM: web, User: "alice", RequestUID: "request-1"}
	bound := Event{Time: now, Action: "Bound", Address: fifty, Pool: "lan", VM: web}
	for name, tc := range map[string]struct {
		ask  ipam.Query
		want Events
	}{
		"by address":       {ipam.Query{Address: fifty}, Events{Events: []Event{committed, bound}}},
		"by VM":            {ipam.Query{Namespace: "prod", Name: "web"}, Events{Events: []Event{committed, bound}}},
		"the youngest":     {ipam.Query{Namespace: "prod", Name: "web", Limit: 1}, Events{Events: []Event{bound}, More: true}},
		"another one's":    {ipam.Query{Namespace: "test"}, Events{Events: []Event{}}},
		"before its time":  {ipam.Query{Until: now}, Events{Events: []Event{}}},
		"since and until":  {ipam.Query{Address: fifty, From: now, Until: now.Add(1)}, Events{Events: []Event{committed, bound}}},
		"after everything": {ipam.Query{From: now.Add(time.Nanosecond)}, Events{Events: []Event{}}},
	} {
		got, err := d.client.History(t.Context(), tc.ask)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tc.want, got, dates); diff != "" {
			t.Errorf("history %s (-want +got):\n%s", name, diff)
		}
	}
}

func TestCheck(t *testing.T) {
	other := []ipam.Sighting{{Address: fifty, Owner: db, Source: "FloatingIP"}}
	for name, tc := range map[string]struct {
		change   func(*cluster)
		problems int
	}{
		"all agree":                   {func(*cluster) {}, 0},
		"another VM shows it":         {func(c *cluster) { c.seen = other }, 2},
		"nobody shows it":             {func(c *cluster) { c.seen = []ipam.Sighting{} }, 1},
		"gone at the second look":     {func(c *cluster) { c.later, c.seen = c.seen, other }, 0},
		"it lies in no pool any more": {func(c *cluster) { c.pools = []ipam.Pool{} }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			tc.change(d.cluster)
			report, err := d.client.Check(t.Context())
			if err != nil || report.Count != tc.problems || len(report.Problems) != tc.problems || report.Held != 1 {
				t.Errorf("%+v, %v; want %d problems", report, err, tc.problems)
			}
		})
	}
}

// A dispute is shown with its parties, and one of them gets the address.
func TestResolve(t *testing.T) {
	d := newDesk(t)
	d.dispute()
	disputes, err := d.client.Disputes(t.Context())
	if err != nil || len(disputes.Disputes) != 1 || disputes.Disputes[0].Holder.VM != web || disputes.Disputes[0].Claimants[0].VM != db {
		t.Fatalf("%+v, %v", disputes, err)
	}
	_, err = d.client.Resolve(t.Context(), fifty, "uid-nobody", "")
	wantError(t, err, "no VM with UID uid-nobody claims it", "prod/web (UID uid-web)", "prod/db (UID uid-db)")
	line, err := d.client.Resolve(t.Context(), fifty, db.UID, "the file was an old one")
	if err != nil || line.VM != db || line.Disputed {
		t.Errorf("%+v, %v", line, err)
	}
	if diff := cmp.Diff([]floatip.Owner{web, db}, d.cluster.settled); diff != "" {
		t.Errorf("settled (-want +got):\n%s", diff)
	}
	events, err := d.client.History(t.Context(), ipam.Query{Address: fifty, Limit: 1})
	if err != nil || events.Events[0].Reason != "resolved by command: the file was an old one" || events.Events[0].User != commandUser {
		t.Errorf("%+v, %v", events, err)
	}
	d.cluster.settled = nil
	if line, err = d.client.Resolve(t.Context(), fifty, db.UID, ""); err != nil || line.VM != db || d.cluster.settled != nil {
		t.Errorf("asked again: %+v, %v, settled %v", line, err, d.cluster.settled)
	}
	d.cluster.err = errors.New("no route to host")
	_, err = d.client.Resolve(t.Context(), fifty, db.UID, "")
	wantError(t, err, "the ledger gives 192.0.2.50 to VM prod/db now", "ask again", "no route to host")
	_, err = d.client.Resolve(t.Context(), fifty, web.UID, "")
	wantError(t, err, "nothing to resolve")
}

func TestRelease(t *testing.T) {
	d := newDesk(t)
	d.cluster.carrier = "pod"
	_, err := d.client.Release(t.Context(), fifty, "", "")
	wantError(t, err, "release 192.0.2.50", "the pod of VM prod/web (UID uid-web) exists", "delete the VM")
	d.cluster.carrier, d.cluster.err = "", errors.New("no route to host")
	_, err = d.client.Release(t.Context(), fifty, "", "")
	wantError(t, err, "whether VM prod/web is gone is not known", "no route to host")
	d.cluster.err, d.cluster.node = nil, "node1"
	for _, other := range []string{"", "node2"} {
		_, err = d.client.Release(t.Context(), fifty, other, "")
		wantError(t, err, "release 192.0.2.50", "VM prod/web is gone", "node1 has answered", "--stopped-on node1")
	}
	if line, _ := d.ledger.Lookup(fifty); line.State != ipam.Bound {
		t.Errorf("after four refusals: %+v", line)
	}
	released, err := d.client.Release(t.Context(), fifty, "node1", "")
	if err != nil || len(released.Lines) != 1 || released.Lines[0].Address != fifty {
		t.Errorf("%+v, %v", released, err)
	}
	if line, _ := d.ledger.Lookup(fifty); line.State != ipam.Released {
		t.Errorf("%+v", line)
	}
	_, err = d.client.Release(t.Context(), fifty, "", "")
	wantError(t, err, "release 192.0.2.50: not held")
}

// A VM that was admitted a moment ago may be stored a moment later, whatever the API server says of it now.
func TestReleaseOfAYoungPromise(t *testing.T) {
	d := newDesk(t)
	claim := floatip.NewClaim()
	_, err := d.ledger.Reserve(t.Context(), ipam.Request{Claim: claim, Namespace: db.Namespace, Name: db.Name})
	if err == nil {
		_, err = d.ledger.Commit(t.Context(), claim, db, nil, byUser)
	}
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.client.Release(t.Context(), fifty.Next(), "", "")
	wantError(t, err, "VM prod/db was admitted less than 1m30s ago", "by itself")
	if line, _ := d.ledger.Lookup(fifty.Next()); line.State != ipam.Pending {
		t.Errorf("%+v", line)
	}
	d.later = 91 * time.Second
	if released, err := d.client.Release(t.Context(), fifty.Next(), "", ""); err != nil || len(released.Lines) != 1 {
		t.Errorf("when it is old: %+v, %v", released, err)
	}
}

// A promise that was kept when floatip was started again has no UID to release it by, and needs nobody to do so.
func TestReleaseOfAKeptPromise(t *testing.T) {
	pool, err := ipam.ParsePool(ipam.PoolText{Name: "lan", Addresses: []string{"192.0.2.50-192.0.2.59"}})
	if err != nil {
		t.Fatal(err)
	}
	pool.AutoAssign = true
	path := filepath.Join(t.TempDir(), "ledger.db")
	open := func() *ipam.Ledger {
		l, err := ipam.Open(path, ipam.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		l.SetPools([]ipam.Pool{pool})
		return l
	}
	l := open()
	if _, err := l.Reserve(t.Context(), ipam.Request{Claim: floatip.NewClaim(), Namespace: "prod", Name: "web", WriteAhead: true}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open()
	_, err = Book{Ledger: l, Cluster: &cluster{}}.Release(t.Context(), fifty, "", "")
	wantError(t, err, "release 192.0.2.50", "a VM of namespace prod may have been admitted with it", "by itself")
	if line, _ := l.Lookup(fifty); line.State != ipam.Pending {
		t.Errorf("%+v", line)
	}
}

// A backup that nobody reads does not keep the process from its end: the file is closed all the same.
func TestEndDuringABackup(t *testing.T) {
	d := newDesk(t)
	ctx, cancel := context.WithCancel(t.Context())
	server := &Server{Path: d.socket + ".end", Book: Book{Ledger: d.ledger, Cluster: d.cluster}}
	done := make(chan error, 1)
	go func() { done <- server.Start(ctx) }()
	var conn net.Conn
	for err := errors.New("not yet"); err != nil; {
		conn, err = net.Dial("unix", server.Path)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("GET " + pathBackup + " HTTP/1.1\r\nHost: ledger\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil { // it has begun
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("serve: %v", err)
	}
	if err := d.ledger.Close(); err != nil {
		t.Error(err)
	}
}

// A VM that has another address by now, as an old copy of the file does not know, lives on without the earlier one.
func TestReleaseOfAnEarlierAddress(t *testing.T) {
	d := newDesk(t)
	later := []ipam.Sighting{{Address: fifty.Next(), Owner: web, Source: "FloatingIP"}}
	if _, err := d.ledger.Adopt(t.Context(), later, true); err != nil {
		t.Fatal(err)
	}
	d.cluster.carrier = "VM"
	if lines, err := d.client.List(t.Context(), netip.Addr{}, 0); err != nil || len(lines.Lines) != 2 || !lines.Lines[0].Superseded {
		t.Errorf("%+v, %v", lines, err)
	}
	_, err := d.client.Release(t.Context(), fifty, "", "")
	wantError(t, err, "FloatingIP shows it with VM prod/web") // as the test's cluster does from the beginning
	d.cluster.seen = later
	report, err := d.client.Check(t.Context())
	if err != nil || report.Count != 1 || report.Problems[0].Address != fifty.String() {
		t.Errorf("check: %+v, %v; want that the cluster does not show the earlier one", report, err)
	}
	_, err = d.client.Release(t.Context(), fifty.Next(), "", "")
	wantError(t, err, "the VM of VM prod/web") // the one that it has
	released, err := d.client.Release(t.Context(), fifty, "", "seen on the LAN of nobody")
	if err != nil || len(released.Lines) != 1 || released.Lines[0].Address != fifty {
		t.Errorf("%+v, %v", released, err)
	}
	if has := d.ledger.ByOwner(web.UID); len(has) != 1 || has[0].Address != fifty.Next() {
		t.Errorf("the VM has %+v", has)
	}
}

// Messages have an end in both directions.
func TestBounds(t *testing.T) {
	d := newDesk(t)
	_, err := d.client.List(t.Context(), netip.Addr{}, maxLines+1)
	wantError(t, err, "at most 5000 at once")
	_, err = d.client.History(t.Context(), ipam.Query{Limit: -1})
	wantError(t, err, "at most 10000 at once")
	_, err = d.client.Release(t.Context(), fifty, "", strings.Repeat("x", maxReason+1))
	wantError(t, err, "the reason has 257 bytes")
	_, err = d.client.Release(t.Context(), netip.MustParseAddr("2001:db8::1%eth0"), "", "")
	wantError(t, err, "has a zone")
	_, err = d.client.Release(t.Context(), fifty, "", strings.Repeat("x", 2*maxQuestion))
	wantError(t, err, "too large")
	if line, _ := d.ledger.Lookup(fifty); line.State != ipam.Bound {
		t.Errorf("%+v", line)
	}
}

func TestSocket(t *testing.T) {
	d := newDesk(t)
	info, err := os.Stat(d.socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(d.socket), ".socket-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	_, err = NewClient(filepath.Join(t.TempDir(), "none")).Check(t.Context())
	wantError(t, err, "no floatip-webhook listens on", "kubectl -n floatip-system exec", "--file")

	other := *d
	other.socket = filepath.Join(t.TempDir(), "stale")
	if err := os.WriteFile(other.socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = NewClient(other.socket).Check(t.Context()) // nobody listens: an earlier process was killed
	wantError(t, err, "no floatip-webhook listens on")
}

// Before ledger and cluster were compared, nobody gets an answer.
func TestNotReady(t *testing.T) {
	d := newDesk(t)
	d.socket += ".early"
	d.serve(func() error { return errors.New("floatip is starting") })
	_, err := d.client.Check(t.Context())
	wantError(t, err, "floatip is starting; try again in some seconds")
}

// A copy answers what the running webhook answers, decides nothing, and stays as it is.
func TestFile(t *testing.T) {
	d := newDesk(t)
	d.dispute()
	_, err := OpenFile(d.path)
	wantError(t, err, d.path, "open in another process", "without --file", "ledger backup")

	copied := filepath.Join(t.TempDir(), "copy.db")
	target, err := os.Create(copied)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.client.Backup(t.Context(), target), target.Close(), os.Chmod(copied, 0o400)); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	file, err := OpenFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	live, err := d.client.List(t.Context(), netip.Addr{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := file.List(t.Context(), netip.Addr{}, 0)
	if diff := cmp.Diff(live, lines, dates); diff != "" || err != nil {
		t.Errorf("list %v (-live +copy):\n%s", err, diff)
	}
	if disputes, err := file.Disputes(t.Context()); err != nil || len(disputes.Disputes) != 1 {
		t.Errorf("%+v, %v", disputes, err)
	}
	if report, err := file.Check(t.Context()); err != nil || report.Held != 1 || report.Count != 0 {
		t.Errorf("%+v, %v", report, err)
	}
	file.Against.Seen = []ipam.Sighting{{Address: fifty.Next(), Owner: db, Source: "VirtualMachine"}}
	if report, err := file.Check(t.Context()); err != nil || report.Count != 1 {
		t.Errorf("against a list of VMs: %+v, %v", report, err)
	}
	_, err = file.Resolve(t.Context(), fifty, web.UID, "")
	wantError(t, err, "a copied ledger is not changed")
	_, err = file.Release(t.Context(), fifty, "", "")
	wantError(t, err, "a copied ledger is not changed")
	dir := file.dir
	if err := file.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s is left", dir)
	}
	if after, err := os.ReadFile(copied); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the copy was changed (%v)", err)
	}
	damaged := filepath.Join(t.TempDir(), "damaged.db")
	if err := os.WriteFile(damaged, before[:len(before)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = OpenFile(damaged)
	wantError(t, err, damaged, "damaged")
}

func TestText(t *testing.T) {
	line := Line{Address: fifty, Pool: "lan", State: "Bound", VM: web, Since: now, Disputed: true, Missing: true}
	for name, tc := range map[string]struct {
		write func(*strings.Builder) error
		want  []string
	}{
		"lines": {func(b *strings.Builder) error { return Lines{[]Line{line}, true}.Text(b) },
			[]string{"ADDRESS      POOL   NAMESPACE", "192.0.2.50   lan    prod        web", "disputed, VM not seen", "--after"}},
		"one line":    {func(b *strings.Builder) error { return line.Text(b) }, []string{"uid-web"}},
		"no disputes": {func(b *strings.Builder) error { return Disputes{}.Text(b) }, []string{"no address is disputed"}},
		"disputes": {func(b *strings.Builder) error {
			return Disputes{[]Dispute{{line, []Claimant{{db, "FloatingIP", now}}}}, false}.Text(b)
		}, []string{"prod/web", "holds it", "prod/db", "claims it", "uid-db"}},
		"texts that are not for a terminal": {func(b *strings.Builder) error {
			return Events{[]Event{{Time: now, Action: "Bound", Address: fifty, VM: web, User: "a\x1b[2Jb", Reason: "one\ttwo\nthree"}}, false}.Text(b)
		}, []string{"a?[2Jb", "one?two?three"}},
		"superseded": {func(b *strings.Builder) error { return Line{Address: fifty, VM: web, Superseded: true}.Text(b) }, []string{"VM has another"}},
		"clean":      {func(b *strings.Builder) error { return Report{Held: 1}.Text(b) }, []string{"1 held, 0 released, 0 events: clean"}},
		"problems": {func(b *strings.Builder) error {
			return Report{Count: 2, Problems: []Problem{{"192.0.2.50", "odd"}}}.Text(b)
		}, []string{"192.0.2.50: odd", "2 problems, 1 of them above"}},
		"events": {func(b *strings.Builder) error {
			return Events{[]Event{{Time: now, Action: "Bound", Address: fifty, VM: web}}, true}.Text(b)
		}, []string{"2026-01-02T03:04:05Z", "prod/web", "--since"}},
	} {
		var b strings.Builder
		if err := tc.write(&b); err != nil {
			t.Fatal(err)
		}
		for _, want := range tc.want {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%s: want %q in\n%s", name, want, b.String())
			}
		}
		for i, row := range slices.DeleteFunc(strings.Split(b.String(), "\n"), func(s string) bool { return s == "" }) {
			if strings.HasSuffix(row, " ") {
				t.Errorf("%s: row %d ends in a blank: %q", name, i, row)
			}
		}
	}
}

func wantError(t *testing.T, err error, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("have %v, want an error with %q", fmt.Sprint(err), text)
		}
	}
}
