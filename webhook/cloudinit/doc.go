// Package cloudinit adds one file to the user data of a guest, and takes nothing from it.
//
// User data is what a person wrote for the guest's first boot. cloud-init takes it in many formats, which it tells
// apart by how the data begins (cloudinit/handlers/__init__.py, INCLUSION_TYPES_MAP). Merge finds out the format on the
// bytes in the same way:
//
//	nothing                                      a #cloud-config with the file
//	#cloud-config                                one more entry of write_files; every other byte stays
//	scripts, includes, boothooks, archives,      a MIME multipart message: the data as its first part, byte for byte,
//	part handlers, JSON patches, jinja           and a #cloud-config with the file as its second
//	MIME multipart                               one more part; every other byte stays
//	anything else                                left alone
//
// A #cloud-config whose text cannot be extended safely (flow style, anchors, merge keys, several documents, a key
// twice) becomes the first part of a message as well. cloud-init merges cloud-configs of several parts by replacing
// lists, so floatip's part asks for appending (cloudinit/mergers).
//
// The package decides on bytes alone: it knows neither KubeVirt nor base64, and it never fails. When in doubt it gives
// a Reason and leaves the data as they are.
package cloudinit
