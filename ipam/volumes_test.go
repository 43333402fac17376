package ipam

import (
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
	path := filepath.Join(t.TempDir(), "other.db")
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketHistory, []byte("something")} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
