package ipam

import (
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"floatip.io/floatip"
)

// A file in which one thing does not fit, written with good checksums, and what the check says of it. The ledger has
// 192.0.2.1 to 192.0.2.6 for the VMs a to f, f has released its own, and a's is disputed.
func TestCheckFindsWhatDoesNotFit(t *testing.T) {
	whole := checkedFile(t)
	if report, err := CheckFile(whole, Against{}); err != nil || report.Err() != nil || report.Held != 5 || report.Released != 1 {
		t.Fatalf("before: %+v, %v", report, err)
	}
	line := func(tx *bbolt.Tx, a string) Allocation {
		key := appendAddress(nil, addr(a))
		line, err := decodeAllocation(key, itemOf(tx.Bucket(bucketAddresses), key))
		if err != nil {
			t.Fatal(err)
		}
		return line
	}
	putLine := func(tx *bbolt.Tx, line Allocation) error {
		key := appendAddress(nil, line.Address)
		return setItem(tx.Bucket(bucketAddresses), key, seal(key, appendAllocation(nil, &line)))
	}
	putOwner := func(tx *bbolt.Tx, line Allocation) error {
		key := ownerKey(nil, line.Claim, line.Address)
		return setItem(tx.Bucket(bucketOwners), key, seal(key, appendOwner(nil, line.Owner)))
	}
	putEntry := func(tx *bbolt.Tx, e entry) error {
		key := numberKey(e.number)
		return tx.Bucket(bucketHistory).Put(key, appendEntry(nil, key, &e))
	}
	next := func(tx *bbolt.Tx) entry {
		x, err := readExtent(tx)
		if err != nil {
			t.Fatal(err)
		}
		return entry{number: x.next, first: x.nextEvent}
	}
	cases := []struct {
		name   string
		change func(tx *bbolt.Tx) error
		want   string
	}{
		{"an owner is missing", func(tx *bbolt.Tx) error {
			return setItem(tx.Bucket(bucketOwners), ownerKey(nil, line(tx, "192.0.2.2").Claim, addr("192.0.2.2")), nil)
		}, "192.0.2.2: the owner index does not list it under prod/b"},
		{"an owner too many", func(tx *bbolt.Tx) error {
			return putOwner(tx, Allocation{Address: addr("192.0.2.9"), Claim: floatip.Claim{9}, Owner: vm("x")})
		}, "192.0.2.9: the owner index lists it under prod/x, who does not have it"},
		{"another owner", func(tx *bbolt.Tx) error {
			one := line(tx, "192.0.2.2")
			one.Owner = vm("x")
			return putOwner(tx, one)
		}, "192.0.2.2: the owner index lists it under prod/x"},
		{"an address is missing", func(tx *bbolt.Tx) error {
			return setItem(tx.Bucket(bucketAddresses), appendAddress(nil, addr("192.0.2.3")), nil)
		}, "192.0.2.3: nobody has it, but the last event says Committed for VM prod/c"},
		{"a state that no event tells", func(tx *bbolt.Tx) error {
			one := line(tx, "192.0.2.3")
			one.State = Released
			return putLine(tx, one)
		}, "192.0.2.3: it is Released for VM prod/c, but the last event says Committed"},
		{"two addresses of one VM", func(tx *bbolt.Tx) error {
			one := line(tx, "192.0.2.3")
			one.Owner = vm("b")
			return putLine(tx, one)
		}, "192.0.2.3: VM prod/b has 192.0.2.2 as well"},
		{"two addresses of one claim", func(tx *bbolt.Tx) error {
			one := line(tx, "192.0.2.3")
			one.Claim = line(tx, "192.0.2.2").Claim
			return putLine(tx, one)
		}, "has 192.0.2.2 as well"},
		{"a dispute without its mark", func(tx *bbolt.Tx) error {
			one := line(tx, "192.0.2.1")
			one.Disputed = false
			return putLine(tx, one)
		}, "192.0.2.1: VM prod/rival claims it, but it is not marked as disputed"},
		{"a mark without a dispute", func(tx *bbolt.Tx) error {
			one := line(tx, "192.0.2.2")
			one.Disputed = true
			return putLine(tx, one)
		}, "192.0.2.2: it is marked as disputed, but nobody else claims it"},
		{"a gap in the history", func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketHistory).Delete(numberKey(3))
		}, "history: entry 4 from event 3 on follows entry 2 up to event 2"},
		{"events that are counted wrong", func(tx *bbolt.Tx) error {
			e := next(tx)
			e.first++
			return putEntry(tx, e)
		}, "history: entry 9 from event 9 on follows entry 8 up to event 8"},
		{"indexes ahead of the history", func(tx *bbolt.Tx) error {
			return putFolded(tx, 100)
		}, "the indexes follow the history up to entry 100"},
		{"indexes behind the oldest entry", func(tx *bbolt.Tx) error {
			for n := uint64(1); n < 4; n++ {
				if err := tx.Bucket(bucketHistory).Delete(numberKey(n)); err != nil {
					return err
				}
			}
			return putFolded(tx, 2)
		}, "the indexes follow the history up to entry 2, it has 4 to 8"},
		{"somebody is forgotten", func(tx *bbolt.Tx) error {
			e := next(tx)
			e.steps = []step{{after: Allocation{Address: addr("192.0.2.4")}}}
			return putEntry(tx, e)
		}, "192.0.2.4: history: entry 9 forgets it, but it is not released"},
		{"a value under another key", func(tx *bbolt.Tx) error {
			raw := itemOf(tx.Bucket(bucketAddresses), appendAddress(nil, addr("192.0.2.2")))
			return setItem(tx.Bucket(bucketAddresses), appendAddress(nil, addr("192.0.2.8")), raw)
		}, "192.0.2.8: checksum does not match"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := copyOf(t, whole)
			db, err := bbolt.Open(path, 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := db.Update(c.change); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			report, err := CheckFile(path, Against{})
			if err == nil {
				err = report.Err()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got:\n%v\nwant %q", err, c.want)
			}
		})
	}
}

// checkedFile returns a ledger as TestCheckFindsWhatDoesNotFit describes it, with everything in the indexes.
func checkedFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := openTest(t, path, newClock(), pool(t, "red", "192.0.2.0/28"))
	for _, name := range strings.Split("abcdef", "") {
		give(t, l, vm(name))
	}
	if _, err := l.Release(t.Context(), vm("f").UID, Cause{}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Adopt(t.Context(), []Sighting{sighting(vm("rival"), addr("192.0.2.1"))}, false); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}
