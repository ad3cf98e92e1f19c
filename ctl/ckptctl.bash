# Completion of ckptctl for bash. The words come from the program's own table.
_ckptctl()
{
	local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} verb= word
	for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
		case $word in
		-*) ;;
		*) [[ -n $verb ]] || verb=$word ;;
		esac
	done
	case $previous in
	--instance)
		local sockets=(/run/ckptd/*/ckptd.sock)
		sockets=("${sockets[@]%/ckptd.sock}")
		mapfile -t COMPREPLY < <(compgen -W "${sockets[*]##*/}" -- "$current")
		return
		;;
	--state | --socket | --config | --out | -o | inspect | export | verify | fsck)
		mapfile -t COMPREPLY < <(compgen -f -- "$current")
		return
		;;
	--sampler)
		mapfile -t COMPREPLY < <(compgen -W 'ddim ddpm' -- "$current")
		return
		;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$(ckptctl --complete ${verb:+"$verb"} 2>/dev/null)" -- "$current")
}
complete -o filenames -F _ckptctl ckptctl
