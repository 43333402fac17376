package webhook

import (
	"encoding/json"
	"reflect"
	"testing"
)

func TestTopLevel(t *testing.T) {
	for _, tc := range []struct {
		raw, want string
		sure      bool
	}{
		{`{"metadata":{"a":1},"spec":{}}`, `{"a":1}`, true},
		{` { "spec" : [ {"metadata": 1}, "}" ] , "metadata" : {"x":"\"}{"} } `, `{"x":"\"}{"}`, true},
		{`{"a":1.5e3,"b":null,"metadata":"text","c":true}`, `"text"`, true},
		{`{"metadata":7}`, `7`, true},
		{`{"Metadata":{},"metadata":{"b":2}}`, `{"b":2}`, true},
		{`{"metadata":{},"metadata":{}}`, "", false},
		{`{"metad\u0061ta":{"c":3}}`, "", false},
		{`{"spec":{}}`, "", true},
		{`{}`, "", true}, {`[]`, "", false}, {`null`, "", false}, {``, "", false}, {`{`, "", false}, {`{"metadata"`, "", false},
		{`{"metadata":`, "", false}, {`{"metadata":}`, "", false}, {`{"metadata":{}`, "", false}, {`{"metadata":{}}x`, "", false},
		{`{"metadata":"`, "", false}, {`{"metadata":"\`, "", false}, {`{"metadata":{} "spec":{}}`, "", false},
	} {
		got, sure := topLevel([]byte(tc.raw), "metadata")
		if sure != tc.sure || sure && string(got) != tc.want {
			t.Errorf("%s: %s, %v; want %s, %v", tc.raw, got, sure, tc.want, tc.sure)
		}
	}
}

// FuzzTopLevel compares what is found with what encoding/json finds in the whole.
func FuzzTopLevel(f *testing.F) {
	for _, seed := range []string{
		`{"metadata":{"a":"\\\""},"spec":{"b":[1,{"metadata":2}]}}`, `{"spec":"}","metadata":null}`, `{"metadata":[],"metadata":1}`,
		"{\n\t\"metadata\" : -1.0E+2 }", `{"metadata\\":1,"metadata":{"é":"\ud83d\ude00"}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, sure := topLevel(raw, "metadata")
		if !sure || !json.Valid(raw) {
			return
		}
		var whole map[string]json.RawMessage
		if err := json.Unmarshal(raw, &whole); err != nil {
			t.Fatal(err)
		}
		if _, there := whole["metadata"]; !there && got == nil {
			return
		}
		var want, have any
		if err := json.Unmarshal(whole["metadata"], &want); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(got, &have); err != nil {
			t.Fatalf("%v: %q of %q", err, got, raw)
		}
		if !reflect.DeepEqual(have, want) {
			t.Errorf("%q of %q, want %q", got, raw, whole["metadata"])
		}
	})
}
