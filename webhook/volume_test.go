package webhook

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"testing"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

// unwritable is a ledger whose volume takes no write. What the ledger does then is package ipam's to show.
type unwritable struct {
	*ipam.Ledger
	err error
}

func (u unwritable) Commit(context.Context, floatip.Claim, floatip.Owner, []netip.Addr, ipam.Cause) ([]ipam.Allocation, error) {
	return nil, u.err
}

// Nothing is promised that is not written, and the user can say to the administrator what is wrong.
func TestVolumeThatTakesNoWrite(t *testing.T) {
	for _, cause := range []error{ipam.ErrDiskFull, ipam.ErrReadOnly, ipam.ErrUncertain} {
		w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
		object := vm("a", nil)
		stored := set(t, apply(t, object, w.post(PathVMCreate, review{kind: vmGVK, object: object})), "metadata.uid", "uid-a")
		w.hooks.Ledger = unwritable{w.ledger, fmt.Errorf("ledger ledger.db: %w; make room on its volume", cause)}
		response := w.post(PathVMCommit, review{kind: vmGVK, object: stored})
		wantRefused(t, response.Result, http.StatusInternalServerError, cause.Error()+"; make room on its volume")
		w.hooks.Ledger = w.ledger
		if response := w.post(PathVMCommit, review{kind: vmGVK, object: stored}); !response.Allowed {
			t.Errorf("once there is room: %+v", response.Result)
		}
	}
}
