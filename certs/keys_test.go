package certs

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const day = 24 * time.Hour

func mustAuthority(t *testing.T, now time.Time) authority {
	t.Helper()
	a, err := newAuthority(now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestNeedsRenewal(t *testing.T) {
	c := mustAuthority(t, epoch).cert
	for _, tc := range []struct {
		name string
		now  time.Time
		want string
	}{
		{"fresh", epoch, ""},
		{"clock behind by half an hour", epoch.Add(-30 * time.Minute), ""},
		{"clock behind by a day", epoch.Add(-day), "not valid before"},
		{"before two thirds", epoch.Add(240 * day), ""},
		{"after two thirds", epoch.Add(250 * day), "two thirds of its life are over"},
		{"expired", epoch.Add(366 * day), "expired at"},
	} {
		due, reason := needsRenewal(c, tc.now)
		if due != (tc.want != "") || !strings.HasPrefix(reason, tc.want) {
			t.Errorf("%s: %v %q, want %q", tc.name, due, reason, tc.want)
		}
	}
}

func TestAdvance(t *testing.T) {
	old, next := mustAuthority(t, epoch), mustAuthority(t, epoch.Add(250*day))
	for _, tc := range []struct {
		name      string
		have      keys
		now       time.Time
		published bool
		reason    string
		// check gets the keys that should be; nil stands for "no change".
		check func(keys) bool
	}{
		{"nothing there", keys{}, epoch, false, "there is no valid authority",
			func(k keys) bool { return k.current.cert != nil && k.next == nil }},
		{"young", keys{current: old}, epoch.Add(day), true, "", nil},
		{"two thirds over", keys{current: old}, epoch.Add(250 * day), true, "a successor is published: two thirds of its life are over",
			func(k keys) bool { return k.current.cert.Equal(old.cert) && k.next != nil }},
		{"successor just made", keys{old, &next}, epoch.Add(250*day + time.Minute), true, "", nil},
		{"successor old enough, not published", keys{old, &next}, epoch.Add(250*day + time.Hour), false, "", nil},
		{"successor old enough, published", keys{old, &next}, epoch.Add(250*day + time.Hour), true, "the successor was trusted for 1h0m0s and issues now",
			func(k keys) bool { return k.current.cert.Equal(next.cert) && k.next == nil }},
		{"clock jumps past the old one", keys{old, &next}, epoch.Add(400 * day), false, "the authority is not valid now, its successor is",
			func(k keys) bool { return k.current.cert.Equal(next.cert) && k.next == nil }},
		{"clock jumps past both", keys{old, &next}, epoch.Add(4000 * day), false, "there is no valid authority",
			func(k keys) bool { return !k.current.cert.Equal(next.cert) && k.next == nil }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, reason, err := tc.have.advance(tc.now, tc.published)
			if err != nil {
				t.Fatal(err)
			}
			if reason != tc.reason {
				t.Errorf("reason %q, want %q", reason, tc.reason)
			}
			if tc.check == nil {
				if !got.equal(tc.have) {
					t.Error("changed")
				}
			} else if !tc.check(got) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestKeysSurviveTheSecret(t *testing.T) {
	current, next := mustAuthority(t, epoch), mustAuthority(t, epoch)
	want := keys{current, &next}
	data, err := want.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseKeys(data)
	if err != nil {
		t.Fatal(err)
	}
	if !got.equal(want) || got.next == nil {
		t.Error("the keys changed on the way")
	}
	data[keyNextKey] = data[keyCAKey] // of another certificate
	if got, err = parseKeys(data); err != nil || got.next != nil {
		t.Errorf("successor with a wrong key: %v, %v", got.next, err)
	}
	data[keyCAKey] = nil
	if _, err = parseKeys(data); err == nil {
		t.Error("an authority without its key was taken")
	}
}

func TestIssue(t *testing.T) {
	a := mustAuthority(t, epoch)
	leaf, err := a.issue([]string{"floatip-webhook.floatip-system.svc"}, epoch.Add(350*day))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	_, err = leaf.Leaf.Verify(x509.VerifyOptions{
		DNSName: "floatip-webhook.floatip-system.svc", Roots: roots, CurrentTime: epoch.Add(351 * day),
	})
	if err != nil {
		t.Error(err)
	}
	if leaf.Leaf.NotAfter.After(a.cert.NotAfter) {
		t.Error("the certificate outlives its authority")
	}
}
