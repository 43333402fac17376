package cloudinit

import (
	"iter"
	"slices"

	"go.yaml.in/yaml/v3"
)

// pairs walks through the keys and values of a mapping; nil has none.
func pairs(mapping *yaml.Node) iter.Seq2[*yaml.Node, *yaml.Node] {
	return func(yield func(k, v *yaml.Node) bool) {
		if mapping == nil {
			return
		}
		for i := 0; i+1 < len(mapping.Content); i += 2 {
			if !yield(mapping.Content[i], mapping.Content[i+1]) {
				return
			}
		}
	}
}

// provesEntry reports whether merged means what before means, with the file as the last entry of write_files and with
// nothing else changed.
func provesEntry(before *yaml.Node, merged []byte, file File) bool {
	documents, err := parse(merged)
	if err != nil || len(documents) != 1 {
		return false
	}
	want, err := parse([]byte(file.config()))
	if err != nil {
		return false
	}
	entries := lookup(rootOf(want), writeFiles).Content
	return equal(withEntry(before, entries[0]), rootOf(documents))
}

// withEntry returns a copy of the mapping root, which may be nil, with one more entry of write_files.
func withEntry(root, entry *yaml.Node) *yaml.Node {
	after := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	found := false
	for k, v := range pairs(root) {
		if k.Value == writeFiles {
			list := *v
			list.Content = append(slices.Clone(v.Content), entry)
			v, found = &list, true
		}
		after.Content = append(after.Content, k, v)
	}
	if root != nil {
		after.Tag, after.Anchor = root.Tag, root.Anchor
	}
	if !found {
		key := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: writeFiles}
		list := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: []*yaml.Node{entry}}
		after.Content = append(after.Content, key, list)
	}
	return after
}

// equal compares what two nodes mean. Where they stand, their style and their comments do not matter; an alias is
// compared by its name.
func equal(a, b *yaml.Node) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Kind == b.Kind && a.ShortTag() == b.ShortTag() && a.Value == b.Value && a.Anchor == b.Anchor &&
		slices.EqualFunc(a.Content, b.Content, equal)
}
