package certs

import (
	"bytes"
	"fmt"
	"time"
)

// Keys of the Secret.
const (
	keyCA       = "ca.crt"
	keyCAKey    = "ca.key"
	keyNext     = "next.crt"
	keyNextKey  = "next.key"
	overlapTime = 10 * time.Minute // far longer than an API server takes to see a changed webhook configuration
)

// keys is the content of the Secret: the authority that issues, and its successor if there is one.
type keys struct {
	current authority
	next    *authority
}

// parseKeys reads the data of the Secret. A successor that cannot be read is left out: it was never used.
func parseKeys(data map[string][]byte) (keys, error) {
	current, err := parseAuthority(data[keyCA], data[keyCAKey])
	if err != nil {
		return keys{}, err
	}
	k := keys{current: current}
	if len(data[keyNext]) > 0 {
		if next, err := parseAuthority(data[keyNext], data[keyNextKey]); err == nil {
			k.next = &next
		}
	}
	return k, nil
}

func (k keys) encode() (map[string][]byte, error) {
	cert, key, err := k.current.encode()
	if err != nil {
		return nil, err
	}
	data := map[string][]byte{keyCA: cert, keyCAKey: key}
	if k.next != nil {
		if cert, key, err = k.next.encode(); err != nil {
			return nil, err
		}
		data[keyNext], data[keyNextKey] = cert, key
	}
	return data, nil
}

// bundle is what API servers shall trust: the authority that issues and the one that will.
func (k keys) bundle() []byte {
	b := certPEM(k.current.cert)
	if k.next != nil {
		b = append(b, certPEM(k.next.cert)...)
	}
	return b
}

// equal reports whether both trust and issue by the same authorities.
func (k keys) equal(other keys) bool {
	return bytes.Equal(k.bundle(), other.bundle())
}

// advance returns the keys that should be in the Secret at now, and why they differ from k; an empty reason says that
// they do not. published says that every caBundle has k.bundle().
func (k keys) advance(now time.Time, published bool) (keys, string, error) {
	if k.current.cert == nil || !usable(k.current.cert, now) {
		if k.next != nil && usable(k.next.cert, now) {
			return keys{current: *k.next}, "the authority is not valid now, its successor is", nil
		}
		fresh, err := newAuthority(now)
		return keys{current: fresh}, "there is no valid authority", err
	}
	if k.next == nil {
		due, reason := needsRenewal(k.current.cert, now)
		if !due {
			return k, "", nil
		}
		next, err := newAuthority(now)
		return keys{current: k.current, next: &next}, "a successor is published: " + reason, err
	}
	if waited := now.Sub(k.next.cert.NotBefore.Add(backdate)); published && waited >= overlapTime {
		return keys{current: *k.next}, fmt.Sprintf("the successor was trusted for %s and issues now", waited.Round(time.Second)), nil
	}
	return k, "", nil
}
