package cloudinit

import (
	"bytes"
	"slices"
	"testing"
	"unicode/utf8"
)

// FuzzMerge gives any bytes as user data: what is skipped stays byte for byte; the rest is extended by nothing but the
// file, is not too long, is of a format that is known, and is not extended again.
func FuzzMerge(f *testing.F) {
	for _, name := range extended {
		f.Add(read(f, name+".in"))
	}
	for name := range leftAlone {
		f.Add(read(f, name+".in"))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		before := bytes.Clone(in)
		got, skipped := Merge(in, testFile)
		if !bytes.Equal(in, before) {
			t.Fatal("the input was written to")
		}
		if skipped != ReasonNone {
			if !bytes.Equal(got, in) {
				t.Fatalf("skipped for %q, and changed: %q", skipped, got)
			}
			return
		}
		if bytes.Equal(got, in) {
			if marked(in, testFile) != ReasonNone {
				t.Fatal("neither extended nor skipped")
			}
			return
		}
		if len(got) > MaxSize || !utf8.Valid(got) {
			t.Fatalf("%d bytes: %q", len(got), got)
		}
		if again, skipped := Merge(got, testFile); skipped != ReasonNone || !bytes.Equal(again, got) {
			t.Fatalf("merged twice: %q, %q", skipped, again)
		}
		wantExtended(t, in, got)
	})
}

// wantExtended checks that merged holds in, and can be read.
func wantExtended(t *testing.T, in, merged []byte) {
	t.Helper()
	was, _ := detect(in)
	now, reason := detect(merged)
	switch {
	case was == formatEmpty:
		if string(merged) != testFile.config() {
			t.Fatalf("%q", merged)
		}
	case was == formatConfig && now == formatConfig:
		documents, err := parse(in)
		if err != nil || !provesEntry(rootOf(documents), merged, testFile) {
			t.Fatalf("%v: %q", err, merged)
		}
		wantInserted(t, in, merged)
	case now != formatMultipart:
		t.Fatalf("from %s to %s (%s): %q", was, now, reason, merged)
	default:
		_, parts, err := readParts(merged)
		if err != nil || len(parts) == 0 {
			t.Fatalf("%v: %q", err, merged)
		}
		if got := parts[len(parts)-1]; got.body+"\n" != testFile.config() && !bytes.Contains(merged, []byte("\r\n")) {
			t.Fatalf("last part %q", got.body)
		}
		if was == formatMultipart {
			wantInserted(t, in, merged)
		} else if isASCII(in) && parts[0].body != string(in) {
			t.Fatalf("first part %q", parts[0].body)
		}
	}
}

// wantInserted checks that taking one run of bytes out of merged gives in.
func wantInserted(t *testing.T, in, merged []byte) {
	t.Helper()
	head := 0
	for head < len(in) && in[head] == merged[head] {
		head++
	}
	tail := bytes.Clone(in[head:])
	rest := bytes.Clone(merged[head:])
	slices.Reverse(tail)
	slices.Reverse(rest)
	if !bytes.HasPrefix(rest, tail) {
		t.Fatalf("%q is not %q with an insertion", merged, in)
	}
}
