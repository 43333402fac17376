package webhook

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"gomodules.xyz/jsonpatch/v2"

	"floatip.io/floatip"
)

// FieldManager is the name under which floatip owns its annotations in metadata.managedFields.
const FieldManager = "floatip-webhook"

// pointerEscape is that of RFC 6901 for a part of a JSON pointer.
var pointerEscape = strings.NewReplacer("~", "~0", "/", "~1")

// pointer joins the parts of a JSON pointer (RFC 6901): "~" and "/" inside of a part are escaped.
func pointer(parts ...string) string {
	var b strings.Builder
	b.Grow(64) // as long as those of floatip's annotations
	for _, p := range parts {
		b.WriteByte('/')
		b.WriteString(pointerEscape.Replace(p))
	}
	return b.String()
}

// setAnnotations returns the operations that give m the wanted annotations and touch no other. An empty value stands
// for "must not be there". Keys come in sorted order, so that equal decisions are equal bytes.
func setAnnotations(m metadata, want map[string]string) []jsonpatch.Operation {
	keys := sortedKeys(want)
	if m.Annotations == nil {
		return addAnnotationMap(keys, want)
	}
	ops := make([]jsonpatch.Operation, 0, len(keys)+1) // one for ownAnnotations
	for _, k := range keys {
		have, present := m.Annotations[k]
		switch {
		case want[k] == "" && present:
			ops = append(ops, jsonpatch.NewOperation("remove", annotationPointer(k), nil))
		case want[k] != "" && have != want[k]:
			ops = append(ops, jsonpatch.NewOperation("add", annotationPointer(k), want[k]))
		}
	}
	return ops
}

// annotationPointers are the JSON pointers of floatip's own annotations.
var annotationPointers = map[string]string{
	floatip.AnnotationAddress: pointer("metadata", "annotations", floatip.AnnotationAddress),
	floatip.AnnotationClaim:   pointer("metadata", "annotations", floatip.AnnotationClaim),
	floatip.AnnotationNAT:     pointer("metadata", "annotations", floatip.AnnotationNAT),
}

func annotationPointer(key string) string {
	if p, known := annotationPointers[key]; known {
		return p
	}
	return pointer("metadata", "annotations", key)
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// addAnnotationMap serves objects without annotations: "add" needs an existing parent (RFC 6902 section 4.1).
func addAnnotationMap(keys []string, want map[string]string) []jsonpatch.Operation {
	annotations := map[string]string{}
	for _, k := range keys {
		if want[k] != "" {
			annotations[k] = want[k]
		}
	}
	if len(annotations) == 0 {
		return nil
	}
	return []jsonpatch.Operation{jsonpatch.NewOperation("add", "/metadata/annotations", annotations)}
}

// Floatip's entry of metadata.managedFields in JSON: these parts around an API version and a time.
const (
	ownEntryHead = `{"manager":"` + FieldManager + `","operation":"Update","apiVersion":`
	ownEntryTime = `,"time":"`
	ownEntryTail = `","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:annotations":{"f:` + floatip.AnnotationAddress +
		`":{},"f:` + floatip.AnnotationClaim + `":{}}}}}`
)

// ownAnnotations returns the operation that records floatip as a manager of the fields address and claim. Without an
// owner of its own a server-side apply that drops the last annotation of its applier would erase the whole map.
func ownAnnotations(m metadata, apiVersion string, now time.Time) []jsonpatch.Operation {
	if slices.ContainsFunc(m.ManagedFields, func(f fieldManager) bool { return f.Manager == FieldManager }) {
		return nil
	}
	entry := make([]byte, 1, 320)
	entry[0] = '['
	entry = appendString(append(entry, ownEntryHead...), apiVersion)
	entry = now.UTC().AppendFormat(append(entry, ownEntryTime...), time.RFC3339)
	entry = append(append(entry, ownEntryTail...), ']')
	if m.ManagedFields == nil {
		return []jsonpatch.Operation{jsonpatch.NewOperation("add", "/metadata/managedFields", json.RawMessage(entry))}
	}
	one := entry[1 : len(entry)-1]
	return []jsonpatch.Operation{jsonpatch.NewOperation("add", "/metadata/managedFields/-", json.RawMessage(one))}
}

// encodePatch writes operations as a JSON patch (RFC 6902). It does what encoding/json would do with a tenth of the
// garbage: this is most of an answer, and mostly strings.
func encodePatch(ops []jsonpatch.Operation) ([]byte, error) {
	b := append(make([]byte, 0, 256*len(ops)), '[')
	for i, op := range ops {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(b, `{"op":`...), '"')
		b = append(append(b, op.Operation...), `","path":`...)
		b = appendString(b, op.Path)
		if op.Operation != "remove" {
			var err error
			if b, err = appendValue(append(b, `,"value":`...), op.Value); err != nil {
				return nil, fmt.Errorf("encode %s %s: %w", op.Operation, op.Path, err)
			}
		}
		b = append(b, '}')
	}
	return append(b, ']'), nil
}

func appendValue(b []byte, value any) ([]byte, error) {
	switch v := value.(type) {
	case string:
		return appendString(b, v), nil
	case json.RawMessage:
		return append(b, v...), nil
	}
	raw, err := json.Marshal(value)
	return append(b, raw...), err
}

// appendString writes s as a JSON string (RFC 8259 section 7).
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			raw, _ := json.Marshal(s) // strings never fail
			return append(b, raw...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}
