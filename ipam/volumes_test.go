package ipam

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// readOnlyDirectory returns a directory with the ledger that cannot be written: a file system mounted read-only where
// the test may mount, else, for a user whom permissions bind, a file without the write bit.
func readOnlyDirectory(t *testing.T, ledger []byte) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "ledger.db")
	mounted := mountSmall(t, dir) == nil
	if err := os.WriteFile(path, ledger, 0o400); err != nil {
		t.Fatal(err)
	}
	switch {
	case mounted:
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatalf("remount %s read-only: %v", dir, err)
		}
	case os.Geteuid() == 0:
		cannot(t, "root may write everything, and mounting a read-only file system (CAP_SYS_ADMIN) is not allowed here")
	}
	return dir
}

// mountSmall mounts a file system of 2 MiB at dir, until the test ends.
func mountSmall(t *testing.T, dir string) error {
	t.Helper()
	if err := unix.Mount("floatip-test", dir, "tmpfs", 0, "size=2m"); err != nil {
		return err
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return nil
}

// cannot skips the test, or fails it when FLOATIP_TEST_ROOT=1 says that it must run.
func cannot(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("FLOATIP_TEST_ROOT") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// A volume that has no room left (ENOSPC): the commit fails with what to do, the full volume can be opened and checked,
// and with a larger one all that was acknowledged is there and work goes on.
func TestFullVolume(t *testing.T) {
	dir := t.TempDir()
	if err := mountSmall(t, dir); err != nil {
		cannot(t, "mounting a small file system needs CAP_SYS_ADMIN: "+err.Error())
	}
	path := filepath.Join(dir, "ledger.db")
	out, err := child(t, "volume", path).Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var acknowledged int
	if _, err := fmt.Sscanf(string(out), "acknowledged %d", &acknowledged); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	var volume unix.Statfs_t
	if err := unix.Statfs(dir, &volume); err != nil || volume.Bavail > 16 {
		t.Fatalf("the volume is not full: %d pages left, %v", volume.Bavail, err)
	}
	l := openTest(t, path, newClock(), pool(t, "six", "2001:db8::/64"))
	if report := checkClean(t, l, Against{}); report.Held != acknowledged || acknowledged < 100 {
		t.Errorf("%d acknowledged, %d found on the full volume", acknowledged, report.Held)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=32m"); err != nil {
		t.Fatal(err)
	}
	give(t, l, vm("after"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openTest(t, path, newClock(), pool(t, "six", "2001:db8::/64"))
	if report := checkClean(t, l, Against{}); report.Held != acknowledged+1 {
		t.Errorf("%d acknowledged, %d found with room again", acknowledged+1, report.Held)
	}
}

// otherDatabase returns a bbolt file that is no ledger.
func otherDatabase(t *testing.T) []byte {
	t.Helper()
	return database(t, func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketHistory, []byte("something")} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return nil
	})
}

// earlierFormat returns a ledger of version 1 or 2: all buckets, and values that this version cannot read. In version 2 each
// address and each owner was a value of its own.
func earlierFormat(t *testing.T, version byte) []byte {
	t.Helper()
	key, value := []byte("an address"), []byte("of version 1")
	if version == 2 {
		key = appendAddress(nil, addr("192.0.2.1"))
		value = seal(key, appendAllocation(nil, &Allocation{Pool: "red", Owner: vm("a"), State: Bound}))
	}
	return database(t, func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return errors.Join(
			tx.Bucket(bucketLedger).Put(keyFormat, []byte{version}),
			tx.Bucket(bucketAddresses).Put(key, value),
			tx.Bucket(bucketHistory).Put(numberKey(1), []byte("an event")),
		)
	})
}

// database returns a bbolt file with what fill writes.
func database(t *testing.T, fill func(tx *bbolt.Tx) error) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "other.db")
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(fill), db.Close()); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func copyOf(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "ledger.db")
	if err := os.WriteFile(to, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}
