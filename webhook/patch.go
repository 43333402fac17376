package webhook

import (
	"maps"
	"slices"
	"strings"
	"time"

	"gomodules.xyz/jsonpatch/v2"

	"floatip.io/floatip"
)

// FieldManager is the name under which floatip owns its annotations in metadata.managedFields.
const FieldManager = "floatip-webhook"

// pointer joins the parts of a JSON pointer (RFC 6901): "~" and "/" inside of a part are escaped.
func pointer(parts ...string) string {
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	var b strings.Builder
	for _, p := range parts {
		b.WriteByte('/')
		escape.WriteString(&b, p)
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
	var ops []jsonpatch.Operation
	for _, k := range keys {
		have, present := m.Annotations[k]
		switch path := pointer("metadata", "annotations", k); {
		case want[k] == "" && present:
			ops = append(ops, jsonpatch.NewOperation("remove", path, nil))
		case want[k] != "" && have != want[k]:
			ops = append(ops, jsonpatch.NewOperation("add", path, want[k]))
		}
	}
	return ops
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

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
	return []jsonpatch.Operation{jsonpatch.NewOperation("add", pointer("metadata", "annotations"), annotations)}
}

// ownAnnotations returns the operation that records floatip as a manager of the fields address and claim. Without an
// owner of its own a server-side apply that drops the last annotation of its applier would erase the whole map.
func ownAnnotations(m metadata, apiVersion string, now time.Time) []jsonpatch.Operation {
	if slices.ContainsFunc(m.ManagedFields, func(f fieldManager) bool { return f.Manager == FieldManager }) {
		return nil
	}
	entry := map[string]any{
		"manager":    FieldManager,
		"operation":  "Update",
		"apiVersion": apiVersion,
		"time":       now.UTC().Format(time.RFC3339),
		"fieldsType": "FieldsV1",
		"fieldsV1": map[string]any{"f:metadata": map[string]any{"f:annotations": map[string]any{
			"f:" + floatip.AnnotationAddress: map[string]any{},
			"f:" + floatip.AnnotationClaim:   map[string]any{},
		}}},
	}
	if m.ManagedFields == nil {
		return []jsonpatch.Operation{jsonpatch.NewOperation("add", pointer("metadata", "managedFields"), []any{entry})}
	}
	return []jsonpatch.Operation{jsonpatch.NewOperation("add", pointer("metadata", "managedFields", "-"), entry)}
}
