package admin

import (
	"bytes"
	"net/http/httptest"
	"net/url"
	"testing"

	"floatip.io/floatip/ipam"
)

// Whatever parseQuery accepts asks the same after it was written and read again.
func FuzzQuery(f *testing.F) {
	for _, text := range []string{
		"", "address=192.0.2.50&limit=3", "namespace=prod&name=web&since=2026-01-02T03:04:05Z&until=2026-01-02T03:04:05.6%2B01:00",
		"address=%3A%3Affff%3A1.2.3.4", "limit=-1&since=0000-01-01T00:00:00Z", "since=yesterday",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		values, err := url.ParseQuery(text)
		if err != nil {
			return
		}
		q, err := parseQuery(values)
		if err != nil {
			if q != (ipam.Query{}) {
				t.Errorf("%q is refused and became %+v", text, q)
			}
			return
		}
		if q.From.UTC().Year() > 9999 || q.Until.UTC().Year() > 9999 {
			return // no RFC 3339 in UTC
		}
		again, err := parseQuery(formatQuery(q))
		if !q.From.Equal(again.From) || !q.Until.Equal(again.Until) {
			t.Errorf("%q: from %s until %s became from %s until %s, %v", text, q.From, q.Until, again.From, again.Until, err)
		}
		again.From, again.Until = q.From, q.Until
		if err != nil || again != q {
			t.Errorf("%q: %+v became %+v, %v", text, q, again, err)
		}
	})
}

// Whatever readDecision accepts is about an address as it is written in the ledger, with a reason of bounded size.
func FuzzDecision(f *testing.F) {
	for _, text := range []string{
		`{"address":"192.0.2.50","keep":"uid"}`, `{"address":"::ffff:192.0.2.50","stoppedOn":"n","reason":"r"}`,
		`{"address":"2001:db8::1%eth0"}`, `{"address":""}`, `{"adress":"192.0.2.50"}`, `[]`, ``,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		d, err := readDecision(httptest.NewRequest("POST", pathRelease, bytes.NewReader(body)))
		if err != nil {
			if d != (decision{}) {
				t.Errorf("%q is refused and became %+v", body, d)
			}
			return
		}
		if again, err := ipam.ParseAddress(d.Address.String()); err != nil || again != d.Address || len(d.Reason) > maxReason {
			t.Errorf("%q became %+v, %v", body, d, err)
		}
	})
}
