package floatip

// AnnotationUserData is written by the user on a VirtualMachine. "false" keeps floatip from adding the file with the
// floating address to the guest's user data, for guests whose first-boot program reads fewer formats than cloud-init.
const AnnotationUserData = "floatip.io/user-data"
