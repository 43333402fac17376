package ipam

import (
	"cmp"
	"errors"
)

// fail does one operation while nothing can be written. It fails, unless there is nothing to write, and either way the
// ledger is as before, in memory and in the file. A Commit of a promise that the file has is acknowledged all the same, and the
// promise is kept.
func (m *model) fail() {
	spoilt := errors.New("the disk is gone")
	m.ledger.settle() // else what was acknowledged for a promise may fail now, and be kept
	m.ledger.store.doubt = spoilt
	defer func() { m.ledger.store.doubt = nil }()
	var changed bool
	var err error
	ctx, owner := m.t.Context(), m.someone()
	owner.UID = m.newUID()
	line, _ := m.someLine()
	switch m.random.IntN(6) {
	case 0:
		if len(m.spent) > 0 {
			f := m.spent[len(m.spent)-1-min(m.random.IntN(len(m.spent)), m.random.IntN(20))]
			owner.Namespace, owner.Name = f.owner.Namespace, cmp.Or(f.owner.Name, owner.Name)
			changed, _ = m.mayCommit(f, owner)
			_, err = m.ledger.Commit(ctx, f.claim, owner, f.addresses, Cause{})
			if promise := m.offers[f.claim]; changed && promise.ahead {
				if err != nil {
					m.t.Errorf("the promise is in the file: %v", err)
				}
				m.ledger.settle() // the transaction fails
				promise.kept = true
				m.offers[f.claim], changed = promise, false
			}
		}
	case 1:
		_, err = m.ledger.Bind(ctx, line.Claim, line.Owner, Cause{})
		_, may := m.mayBind(line)
		changed = may && line.State == Pending && !m.superseded(line.Allocation)
	case 2:
		_, err = m.ledger.Release(ctx, line.Owner.UID, Cause{})
		changed = line.held()
	case 3:
		s := m.sighting()
		_, err = m.ledger.Adopt(ctx, []Sighting{s, m.sighting(), m.sighting()}, m.random.IntN(2) == 0)
		_, had := m.lines[s.Address]
		changed = !had
	case 4:
		_, err = m.ledger.Resolve(ctx, line.Address, line.Owner.UID, Cause{})
		changed = line.held() && line.Disputed
	case 5:
		_, err = m.ledger.GiveUp(ctx, line.Address, line.Owner.UID, Cause{})
		changed = line.held() && !line.Disputed && m.superseded(line.Allocation)
	}
	if changed && !errors.Is(err, spoilt) {
		m.t.Errorf("while nothing can be written: %v", err)
	}
}
