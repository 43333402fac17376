package ipam

import (
	"errors"
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
	mounted := unix.Mount("floatip-test", dir, "tmpfs", 0, "size=4m") == nil
	if mounted {
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", dir, err)
			}
		})
	}
	if err := os.WriteFile(path, ledger, 0o400); err != nil {
		t.Fatal(err)
	}
	switch {
	case mounted:
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatalf("remount %s read-only: %v", dir, err)
		}
	case os.Geteuid() == 0:
		why := "root may write everything, and mounting a read-only file system (CAP_SYS_ADMIN) is not allowed here"
		if os.Getenv("FLOATIP_TEST_ROOT") == "1" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	return dir
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

// earlierFormat returns a ledger of version 1: all buckets, and values that this version cannot read.
func earlierFormat(t *testing.T) []byte {
	t.Helper()
	return database(t, func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return errors.Join(
			tx.Bucket(bucketLedger).Put(keyFormat, []byte{1}),
			tx.Bucket(bucketAddresses).Put([]byte("an address"), []byte("of version 1")),
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
